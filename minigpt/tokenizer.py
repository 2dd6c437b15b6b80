"""Text to token ids and back: by bytes, which can encode any file, or by the characters of one text.  (bpe.py: by merges.)"""

from collections.abc import Sequence

import numpy as np

from .bpe import BPETokenizer


class ByteTokenizer:
    """A token is a byte: 256 of them, for any text in any language and any file."""

    vocab_size = 256

    def encode(self, text: str | bytes) -> np.ndarray:
        """ids (n,) int64 of a str (as UTF-8) or bytes."""
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64)

    def decode_bytes(self, ids: np.ndarray | Sequence[int]) -> bytes:
        return np.asarray(ids, np.uint8).tobytes()

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The str of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def to_json(self) -> dict:
        return {"kind": "bytes"}


class CharTokenizer:
    """A token is a character, numbered in the sorted order of the characters of one text."""

    def __init__(self, characters: str):
        """characters: a str of all of them; order and repetition do not matter.  ValueError where there are none."""
        self.itos = sorted(set(characters))
        if not self.itos:
            raise ValueError("there are no characters in an empty text")
        self.stoi = {character: i for i, character in enumerate(self.itos)}
        self.vocab_size = len(self.itos)

    def encode(self, text: str | bytes) -> np.ndarray:
        """ids (n,) int64 of a str or UTF-8 bytes.  ValueError for a character that is not among the known ones."""
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"the text is not UTF-8 (byte {error.start}): use the byte tokenizer") from None
        try:
            return np.array([self.stoi[character] for character in text], np.int64)
        except KeyError as error:
            unknown = error.args[0]
            raise ValueError(f"the character {unknown!r} at position {text.index(unknown)} is not one of the "
                             f"{self.vocab_size} that this tokenizer knows") from None

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        return "".join(self.itos[i] for i in ids)

    def decode_bytes(self, ids: np.ndarray | Sequence[int]) -> bytes:
        return self.decode(ids).encode()

    def to_json(self) -> dict:
        return {"kind": "characters", "characters": "".join(self.itos)}


def from_json(description: dict) -> ByteTokenizer | CharTokenizer | BPETokenizer:
    """The tokenizer that `to_json` described.  ValueError for anything else."""
    match description:
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "characters", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "bpe"}:
            return BPETokenizer.from_json(description)
    raise ValueError(f"unknown tokenizer {description!r}")
