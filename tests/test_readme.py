"""What docs/READING.md says of the source is true."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
READING = (ROOT / "docs" / "READING.md").read_text("utf-8")


def reading_list():
    """The source files that its tables name, in order; in a cell, a bare name is in the folder of the one before."""
    for cell in re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \|", READING, re.MULTILINE):
        folder = Path()
        for name in re.findall(r"`([^`]+)`", cell):
            folder = Path(name).parent if "/" in name else folder
            yield (folder / Path(name).name).as_posix()


def test_the_reading_list_names_every_module_once():
    modules = {path.relative_to(ROOT).as_posix() for room in ("minigpt", "coder") for path in (ROOT / room).rglob("*.py")
               if path.parent.name != "lab"}                    # whose modules docs/LAB.md names: see test_lab.py
    found = list(reading_list())
    assert len(found) == len(set(found))
    assert set(found) == {name for name in modules if not name.endswith(("__init__.py", "__main__.py"))}


def test_the_core_path_is_read_in_an_evening():
    lines = {name: (ROOT / name).read_text("utf-8").splitlines() for name in reading_list()}
    assert len(lines["minigpt/reference.py"]) <= 450 and len(lines["coder/reference.py"]) <= 200
    core = [*(f"minigpt/{name}.py" for name in ("reference", "layers", "blocks", "model", "optimizer", "trainer", "sampling")),
            *(f"coder/{name}.py" for name in ("intervals", "range_coder", "frequencies", "codec", "container", "reference"))]
    assert [name for name in lines if name in core] == core             # in this order
    assert sum(bool(line.strip()) for name in core for line in lines[name]) < 2000
