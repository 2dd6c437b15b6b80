"""Options are the fields of a dataclass, each with its default and a line of help."""

from dataclasses import field
from typing import Any


def option(default: Any, help: str) -> Any:
    """A dataclass field with that default.  The help is in its metadata, from where a command line can show it."""
    return field(default=default, metadata={"help": help})
