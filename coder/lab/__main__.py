"""python -m coder.lab: the experiments.  python -m coder.lab NAME: run one of them.

An experiment is a module of this folder whose docstring begins with its number in docs/LAB.md, "7. Title": with
    run(...) -> results             prints a table, what it shows and what it does not show.  Every argument has a default;
                                    if there is a `data`, it is the path of a text to use instead of tiny Shakespeare
    plot(figure, results) -> None   draws the results on an empty matplotlib.figure.Figure
"""

import sys

try:
    import argparse
    import ast
    import importlib
    import inspect
    import io
    from pathlib import Path

    from minigpt.exits import one_sentence
except KeyboardInterrupt:
    sys.exit(130)

FOLDER = Path(__file__).parent


class LabError(Exception):
    """An experiment cannot be run.  The message is one sentence for the user."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command line (default: that of the process).  SystemExit with one sentence if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m coder.lab", description="Experiments: what the theory claims about "
                                     "models, codes and information, measured in bytes. docs/LAB.md is their reading order.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the experiment to run (default: list them)")
    parser.add_argument("--data", metavar="FILE", help="a text to use instead of tiny Shakespeare")
    parser.add_argument("--plot", metavar="FILE", help="draw the result as a picture (PNG, PDF or SVG), with matplotlib")
    options = parser.parse_args(arguments)
    if not options.name and (options.data or options.plot):
        parser.error("--data and --plot need the NAME of an experiment")
    with one_sentence("lab", LabError):
        if sys.stdout:
            sys.stdout.reconfigure(errors="replace")            # a terminal may not encode every character
        if options.name:
            run_experiment(options.name, options.data, options.plot)
        else:
            for name, title in experiments().items():
                print(f"{name:<16}{title}")


def experiments() -> dict[str, str]:
    """{name: number and title} of all experiments, in the order of their numbers.  Imports none of them."""
    titles = {path.stem: (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
              for path in FOLDER.glob("*.py")}
    numbered = {name: title for name, title in titles.items() if title.partition(".")[0].isdigit()}
    return dict(sorted(numbered.items(), key=lambda item: int(item[1].partition(".")[0])))


def run_experiment(name: str, data: str | None = None, plot: str | None = None) -> None:
    """Run the experiment of that name, and draw it to the file `plot`.  LabError if that is not possible."""
    if name not in experiments():
        raise LabError(f"there is no experiment {name!r}: choose one of {', '.join(experiments())}")
    figure = new_figure(Path(plot)) if plot else None           # first, so that no work is lost to a bad path
    module = importlib.import_module(f"{__package__}.{name}")
    if data and "data" not in inspect.signature(module.run).parameters:
        raise LabError(f"the experiment {name} uses no text: leave out --data")
    from minigpt.checkpoint import CheckpointError
    from minigpt.corpus import CorpusError
    from minigpt.files import write_atomically

    from ..container import CoderError
    try:
        results = module.run(data=data) if data else module.run()
    except (CoderError, CheckpointError, CorpusError, FloatingPointError) as error:
        raise LabError(str(error)) from None
    if figure:
        module.plot(figure, results)
        image = io.BytesIO()
        figure.savefig(image, format=Path(plot).suffix[1:], dpi=120, bbox_inches="tight")
        write_atomically(plot, image.getvalue())


def new_figure(path: Path):
    """A matplotlib Figure that can be saved to `path`.  LabError if it cannot, or if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LabError('--plot needs matplotlib: install it with pip install "minigpt[plot]", or leave out --plot') from None
    figure = Figure(figsize=(8, 4.5))
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise LabError(f"{path} does not end in the name of a picture format: call it {path.stem or 'plot'}.png")
    if path.is_dir():
        raise LabError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise LabError(f"there is no folder {path.parent}: {path} cannot be written")
    return figure


if __name__ == "__main__":
    main()
