"""README and docs: links that lead somewhere, pictures that are the model's, and a notebook that runs."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readme_has_at_most_1000_words():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, place = target.partition("#")
        path = (page.parent / path).resolve() if path else page
        assert path.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target


def test_each_picture_is_small_whole_and_shown_somewhere():
    shown = {(page.parent / path).resolve() for page in PAGES
             for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8"))}
    pictures = set((ROOT / "docs").glob("*.svg"))
    assert shown == pictures and len(pictures) == 4
    for path in pictures:
        assert path.stat().st_size < 60_000
        ElementTree.parse(path)


def test_the_pictures_of_the_bundled_model_are_those_that_their_command_draws(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    pictures.main([])
    for name in "flow", "passage", "attention":
        assert (tmp_path / f"{name}.svg").read_bytes() == (ROOT / f"docs/{name}.svg").read_bytes()
    with pytest.raises(Exception, match="there is no model at nothing"):
        pictures.main(["nothing"])


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_it_shows():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    path = ROOT / "docs/tour.ipynb"
    notebook = nbformat.read(path, 4)

    def printed():
        return ["".join(output.get("text", "?") for output in cell.get("outputs", [])) for cell in notebook.cells]
    shown = printed()
    where = {"metadata": {"path": path.parent}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert printed() == shown and sum(map(bool, shown)) >= 6
