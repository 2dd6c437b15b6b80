"""Byte-level byte-pair encoding: the tokens of GPT-2, Llama 3, Qwen2 and SmolLM.  [Sennrich et al. 2016; Radford et al. 2019]

A text is split into words by a regular expression, the pre-tokeniser.  Inside each word, the two neighbouring tokens whose
merge has the lowest rank become one, until there is nothing more to merge.  A merge never crosses the border of a word.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush

import numpy as np

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {                      # the pre-tokenisers, in the notation of the libraries that the models were trained with
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Each digit alone, then GPT-2's on what is between.  So a digit ends the text for the spaces before it.
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORDS % r"\p{N}{1,3}",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORDS % r"\p{N}",
}
WORDS_CACHED = 2 ** 18


@lru_cache
def _classes():
    """{class: its characters}, to stand inside brackets.  Python's own \\s has 1c to 1f besides, and \\d only some of \\p{N}.

    The version of Unicode is Python's.  Another may split a text differently, but the ids still stand for the same bytes; and
    since only an encoder splits, no decoder depends on it.
    """
    starts = {"L": [], "N": []}
    last = ""
    for code in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(code))[0]
        if kind != last and last in starts:
            starts[last][-1] += f"-{chr(code - 1)}"
        if kind != last and kind in starts:
            starts[kind].append(chr(code))
        last = kind
    return {r"\p{L}": "".join(starts["L"]), r"\p{N}": "".join(starts["N"]),
            r"\s": "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"}


@lru_cache
def _pattern(split):
    """The pre-tokeniser of that name, compiled by Python's re, which knows no \\p."""
    classes = _classes()

    def expand(match):
        if match[0][0] == "[":
            return re.sub(r"\\p{[LN]}|\\s", lambda inner: classes[inner[0]], match[0])
        return f"[^{classes[chr(92) + 's']}]" if match[0] == r"\S" else f"[{classes[match[0]]}]"
    return re.compile(re.sub(r"\[[^]]*\]|\\p{[LN]}|\\[sS]", expand, SPLITS[split]))


def words(text: bytes, split: str) -> Iterator[str]:
    """The words of a text, each byte that is not UTF-8 as a surrogate (PEP 383).  Joined and encoded they are the text.

    Where such bytes cut a text, each part of it is split as if it were alone.
    """
    pattern = _pattern(split)
    for i, part in enumerate(re.split("([\udc80-\udcff]+)", text.decode(errors="surrogateescape"))):
        if i % 2:
            yield part
        else:
            yield from (match[0] for match in pattern.finditer(part))


class BPETokenizer:
    """A token is a sequence of bytes that is frequent in the text from which the merges were learned."""

    def __init__(self, vocabulary: list[bytes], merges: list[tuple[bytes, bytes]], split: str, start: int | None = None):
        """vocabulary: the bytes of each id; b"" for control tokens, which no text ever becomes.  merges: in order of rank.
        split: one of SPLITS.  start: the control token before every text, if there is one; `encode` leaves it out.
        ValueError for another split or start, and where the result of a merge is not in the vocabulary."""
        if split not in SPLITS:
            raise ValueError(f"there is no pre-tokeniser {split!r}: choose one of {', '.join(SPLITS)}")
        if start is not None and not (isinstance(start, int) and 0 <= start < len(vocabulary)):
            raise ValueError(f"a text must start with an id of 0 .. {len(vocabulary) - 1}, but start is {start!r}")
        self.vocabulary, self.merges, self.split, self.start = vocabulary, merges, split, start
        self.vocab_size = len(vocabulary)
        self.ids = {token: i for i, token in reversed(list(enumerate(vocabulary))) if token}
        self.ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
        for left, right in merges:
            if not left or not right or left + right not in self.ids:
                raise ValueError(f"the vocabulary has no token for the merge of {left!r} and {right!r}")
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str | bytes) -> np.ndarray:
        """ids (n,) int64 of a str (as UTF-8) or of any bytes.

        A byte that is no token stands for itself as the id vocab_size + byte, which no model knows: so decode_bytes(encode(x))
        is x whatever x is.  What looks like a control token in the text is text.
        """
        ids: list[int] = []
        for word in words(text.encode() if isinstance(text, str) else text, self.split):
            if (found := self._cache.get(word)) is None:
                if len(self._cache) == WORDS_CACHED:
                    self._cache.clear()
                found = self._cache[word] = self._merge(word.encode(errors="surrogateescape"))
            ids += found
        return np.array(ids, np.int64)

    def _merge(self, word):
        """The ids of a word.  Tokens are linked to their neighbours and merges wait in a heap, so that a long word takes
        n log n steps."""
        if self.split == "llama3" and word in self.ids:         # this model's own tokenizer asks its merges only then
            return [self.ids[word]]
        n = len(word)
        parts = [bytes([byte]) for byte in word] + [b""]        # b"" where no token is: at n, and so at -1, or merged away
        after, before = [*range(1, n + 1), n], list(range(-1, n))
        heap = [(self.ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:])) if pair in self.ranks]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            j = after[i]
            if self.ranks.get((parts[i], parts[j])) != rank:    # one of the two has been merged with another meanwhile
                continue
            parts[i], parts[j] = parts[i] + parts[j], b""
            after[i] = after[j]
            before[after[i]] = i
            for k in before[i], i:
                if (rank := self.ranks.get((parts[k], parts[after[k]]))) is not None:
                    heappush(heap, (rank, k))
        return [self.ids[part] if part in self.ids else self.vocab_size + part[0] for part in parts if part]

    def decode_bytes(self, ids: np.ndarray | Sequence[int]) -> bytes:
        """The bytes of ids, joined; none for control tokens.  ValueError for an id outside 0 .. vocab_size + 255."""
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size + 256):
            raise ValueError(f"ids must lie in 0 .. {self.vocab_size + 255}, but reach from {ids.min()} to {ids.max()}")
        size = self.vocab_size
        return b"".join(self.vocabulary[i] if i < size else bytes([i - size]) for i in ids.tolist())

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The str of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def to_json(self) -> dict:
        return {"kind": "bpe", "split": self.split, "start": self.start,
                "vocabulary": [token.decode("latin-1") for token in self.vocabulary],
                "merges": [[part.decode("latin-1") for part in pair] for pair in self.merges]}

    @classmethod
    def from_json(cls, description: dict) -> "BPETokenizer":
        """The tokenizer that `to_json` described.  ValueError for anything else."""
        try:
            vocabulary = [token.encode("latin-1") for token in description["vocabulary"]]
            merges = [(left.encode("latin-1"), right.encode("latin-1")) for left, right in description["merges"]]
            return cls(vocabulary, merges, description["split"], description["start"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this describes no byte-pair encoding: {error!r}") from None


def train(text: bytes, vocab_size: int, split: str = "gpt2") -> BPETokenizer:
    """Learn merges from a text: the 256 bytes, then again and again the most frequent pair of neighbours becomes a token.

    Of pairs equally frequent, the smaller one in the order of bytes is merged.  There are fewer than vocab_size tokens where
    the text has no more pairs.  ValueError where vocab_size is less than 256, or no such pre-tokeniser exists.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be at least 256, a token for each byte, but is {vocab_size}")
    tokenizer = BPETokenizer([bytes([byte]) for byte in range(256)], [], split)
    vocabulary, merges = tokenizer.vocabulary, []
    frequencies = Counter(words(text, split))
    parts = [[bytes([byte]) for byte in word.encode(errors="surrogateescape")] for word in frequencies]
    times = list(frequencies.values())
    counts: Counter[tuple[bytes, bytes]] = Counter()            # how often each pair occurs,
    places: dict[tuple[bytes, bytes], set[int]] = {}            # and the indices of the words that it was ever in
    for i, tokens in enumerate(parts):
        for pair in zip(tokens, tokens[1:]):
            counts[pair] += times[i]
            places.setdefault(pair, set()).add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapify(heap)
    known = set(vocabulary)
    while heap and len(vocabulary) < vocab_size:
        count, pair = heappop(heap)
        if -count != counts[pair] or not count:                 # out of date: the count of now is in the heap as well
            continue
        merges.append(pair)
        if (token := pair[0] + pair[1]) not in known:           # abc may come from a bc, and from ab c
            known.add(token)
            vocabulary.append(token)
        changed = set()
        for i in places.pop(pair):
            old, parts[i] = parts[i], _merged(parts[i], pair)
            for neighbours in zip(old, old[1:]):
                counts[neighbours] -= times[i]
                changed.add(neighbours)
            for neighbours in zip(parts[i], parts[i][1:]):
                counts[neighbours] += times[i]
                changed.add(neighbours)
                places.setdefault(neighbours, set()).add(i)
        for neighbours in changed:
            heappush(heap, (-counts[neighbours], neighbours))
    return BPETokenizer(vocabulary, list(dict.fromkeys(merges)), split)


def bytes_of(shown: str) -> bytes | None:
    """The bytes of a token as GPT-2's files write it, a visible character for each; None where a character stands for none."""
    try:
        return bytes(_visible()[character] for character in shown)
    except KeyError:
        return None


@lru_cache
def _visible():
    """{character: byte}: the visible characters of Latin-1 are their bytes, and the others are numbered from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _merged(tokens, pair):
    """The tokens with each occurrence of the pair as one, from left to right."""
    merged, i = [], 0
    while i < len(tokens):
        if i + 1 < len(tokens) and (tokens[i], tokens[i + 1]) == pair:
            merged.append(tokens[i] + tokens[i + 1])
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged
