"""Short texts, each alone: a message has no header, no length, and as a rule no checksum, so both sides must have the model.

What is coded is the text and a line feed.  Where the text is one line, that line feed is its end, and the model knows best
where lines end: the first 1,000 lines of the validation part of tiny Shakespeare pay 0.5 bits each for it, and take 8,299
bytes in all; with a length (a number, as in container.py) before each code instead, 9,247.

    message     code                            of a line
                FC code, FE text                any text: coded, or as it is
                FD crc code, FF crc text        the same, with CRC-16 (2 bytes, big-endian) of the text
                                                nothing at all: the empty text
docs/FORMAT.md has the details.  The first byte of a line's code is less than FB, since its first symbol takes LINE of 256
parts of the interval: 0.03 bits instead of a byte.  A code behind FC or FD has no such symbol; but each line feed is followed
by one that says whether it is the end.  A code is the shortest that points into its interval.

A code must be just the one that the encoder makes of the text which is found in it.  Where that fails, the message is damaged,
or was made with another model.  Of 250 of those lines with a wrong bit each, 212 are found so; the others need a checksum.

A message is a stream with a range coder of its own: streams advance in lockstep, so that one pass of the model serves many,
and as a row of a pass has the same bits in any company, a message does not depend on what else is coded.
"""

from binascii import crc_hqx
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numba import njit

from minigpt.ensemble import Ensemble
from minigpt.model import TOKENS_PER_PASS, GPT

from . import models
from .codec import START_SYMBOL
from .container import CoderError
from .frequencies import to_frequencies
from .predictor import windows
from .range_coder import (OFFSET, POSITION, RANGE, REGISTER, decode_symbol, decode_target, encode_symbol, find_symbol,
                          finish_encoding, start_decoding, start_encoding)

DEFAULT = bytes.fromhex("537e8241a1b34f48")     # the short fingerprint of the model where none is named, for good
LARGEST_MESSAGE = 2 ** 14                       # bytes of text, which bounds what a damaged message can cost
LINE_FEED, LINE, END = 10, 251, 16              # the end of a text; shares: LINE / 256 is a line, 1 / END of line feeds an end
CODED, STORED, CHECKED = 0xFC, 0xFE, 1          # the first byte of other messages, + 1 with a checksum
FIRST_LEG, FIRST_ROWS, ROWS = 64, 256, 64       # so many symbols of so many streams at once, then fewer: bounds the memory


def compress_message(data: bytes, model: GPT | Ensemble | None = None, check: bool = False) -> bytes:
    """The message of data (at most LARGEST_MESSAGE bytes): its code and up to 3 bytes, or, if that is shorter, data and 1 byte
    (with a checksum 3).

    model: predicts bytes, the same on both sides; by default the bundled one.  check: with a checksum of 2 bytes.
    CoderError where data is too long, or the model predicts something else.
    """
    return compress_messages([data], model, check)[0]


def decompress_message(message: bytes, model: GPT | Ensemble | None = None) -> bytes:
    """The data of a message that `compress_message` made with the same model.

    CoderError where it is damaged, as far as that shows, or of a kind that this program does not know.
    """
    return decompress_messages([message], model)[0]


def compress_messages(texts: Iterable[bytes], model: GPT | Ensemble | None = None, check: bool = False) -> list[bytes]:
    """The message of each text, as `compress_message` makes them; faster the more there are."""
    texts = [bytes(text) for text in texts]
    distinct = sorted(dict.fromkeys(texts), key=len, reverse=True)
    if distinct and len(distinct[0]) > LARGEST_MESSAGE:
        raise CoderError(f"a message holds at most {LARGEST_MESSAGE:,} bytes, but this text has {len(distinct[0]):,}: "
                         "use coder.compress")
    lines = [not check and b"\n" not in text for text in distinct]
    messages = {}
    for text, line, code in zip(distinct, lines, _encode(_usable(model), distinct, lines)):
        checksum = crc_hqx(text, 0).to_bytes(2, "big") if check else b""
        stored = bytes([STORED + check]) + checksum + text
        coded = code if line else bytes([CODED + check]) + checksum + code
        messages[text] = (coded if len(coded) < len(stored) else stored) if text else b""
    return [messages[text] for text in texts]


def decompress_messages(messages: Iterable[bytes], model: GPT | Ensemble | None = None) -> list[bytes]:
    """The data of each message, as `decompress_message` finds it; faster the more there are.  CoderError if one is damaged."""
    messages = [bytes(message) for message in messages]

    def refuse(message, reason):
        which = "the message" if len(messages) == 1 else f"message {messages.index(message) + 1} of {len(messages)}"
        raise CoderError(f"{which} {reason}") from None

    texts, checksums, codes = {b"": b""}, {}, {}
    for message in dict.fromkeys(filter(None, messages)):
        kind = message[0] if message[0] >= LINE else None           # None: a line
        body = 0 if kind is None else 1 + 2 * (kind & CHECKED)
        if kind == LINE:
            refuse(message, "begins with the byte FB, whose meaning this program does not know: it needs a newer program")
        if not body <= len(message) <= body + LARGEST_MESSAGE:
            refuse(message, f"is cut off, or no message: it has {len(message):,} bytes")
        if body > 1:
            checksums[message] = message[1:body]
        if kind is None or kind < STORED:
            codes[message] = message[body:]
        else:
            texts[message] = message[body:]
    order = sorted(codes, key=codes.__getitem__)         # texts that begin alike have codes that do
    if order:
        texts |= zip(order, _decode(_usable(model), [codes[message] for message in order], [m[0] < LINE for m in order]))
    for message, text in texts.items():
        if text is None:
            refuse(message, "is damaged, or was made with another model: its code does not end where its text does")
        if message in checksums and crc_hqx(text, 0).to_bytes(2, "big") != checksums[message]:
            refuse(message, "is damaged, or was made with another model: CRC-16 mismatch")
    return [texts[message] for message in messages]


@lru_cache(maxsize=1)
def _default_model():
    model = models.load_fitting(DEFAULT)
    for member in model.members:
        member.freeze()
    return model


def _usable(model):
    if model is not None and getattr(getattr(model, "config", None), "vocab_size", None) != 256:
        raise CoderError("messages need a model that predicts bytes, but this one knows other tokens")
    return model or _default_model()


# --- streams in lockstep ------------------------------------------------------------------------------------------------

def _encode(model, texts, lines):
    """The codes of texts, from the longest to the shortest.  lines: which of them are coded as a line."""
    symbols = [np.frombuffer(bytes([START_SYMBOL]) + text + b"\n", np.uint8).astype(np.int64) for text in texts]
    coders = [start_encoding() for _ in texts]
    states, outs = [state for state, _ in coders], [out for _, out in coders]
    for i in np.flatnonzero(lines):
        outs[i] = encode_symbol(states[i], outs[i], 0, LINE, 256)
    for start, first, stop in windows(len(symbols[0]) - 1 if texts else 0, model.config.block_size):
        count = len([own for own in symbols if start + first < len(own) - 1])       # that have new symbols here
        i = 0
        while i < count:
            width = min(stop, len(symbols[i]) - 1) - start
            part = range(i, min(i + max(1, TOKENS_PER_PASS // width), count))
            grid = np.full((len(part), width), LINE_FEED, np.int64)                 # what is behind an end changes nothing
            for row, own in zip(grid, symbols[i:part.stop]):
                row[:len(own) - 1 - start] = own[start:min(start + width, len(own) - 1)]
            logits = model.forward(grid)[:, first:]
            frequencies = to_frequencies(logits.reshape(-1, 256)).reshape(logits.shape)
            for s in part:
                new = symbols[s][start + first + 1:start + width + 1]
                end = len(symbols[s]) - 1 - (start + first + 1)                      # where in `new` the text ends
                outs[s] = _encode_symbols(states[s], outs[s], frequencies[s - i], new, -1 if lines[s] else end)
            i = part.stop
    return [finish_encoding(state, out).tobytes() for state, out in zip(states, outs)]


def _decode(model, codes, lines):
    """The text of each code, or None where the code is not that of a text.  Codes that begin alike should be side by side."""
    joined = np.frombuffer(b"".join(codes), np.uint8)
    sizes = np.array([len(code) for code in codes])
    bounds = np.array([*accumulate(sizes, initial=0)])
    states = np.stack([start_decoding(np.frombuffer(code, np.uint8)) for code in codes])
    lines, texts, whole = np.array(lines), [bytearray([START_SYMBOL]) for _ in codes], [False] * len(codes)
    for i in np.flatnonzero(lines):
        decode_target(states[i], 256)
        decode_symbol(states[i], joined[bounds[i]:bounds[i + 1]], 0, LINE)
    streams = np.arange(len(codes))
    for start, first, stop in _legs(model.config.block_size):
        size = min(ROWS if start + first else FIRST_ROWS, len(streams))
        cache, going = model.new_cache(size, stop - start), []
        members = cache if isinstance(cache, list) else [cache]
        for at in range(0, len(streams), size):
            part = streams[at:at + size]
            known, rows = np.unique([list(texts[i][start:]) for i in part], axis=0, return_inverse=True)    # (rows, first + 1)
            for own in members:
                own.restart(len(known))
            if first:
                model.forward(known[:, :-1], cache=cache)
            symbols, rows = known[:, -1], rows.reshape(-1)                  # texts that begin alike share a row
            for _ in range(start + first, stop):
                frequencies = to_frequencies(model.step(symbols, cache))
                found, ended = np.empty(len(part), np.int64), np.empty(len(part), np.bool_)
                _decode_symbols(states, part, rows, joined, bounds, lines, frequencies, found, ended)
                for i, symbol in zip(part, found):
                    texts[i].append(symbol)
                for i in part[ended]:
                    whole[i] = _is_the_code(states[i], codes[i])
                lost = states[part, POSITION].astype(np.int64) > sizes[part] + REGISTER          # it is over, and goes on
                lost |= states[part, OFFSET] >= states[part, RANGE]
                on = ~(ended | lost)
                part = part[on]
                if not len(part):
                    break
                pairs, rows = np.unique(rows[on] * 256 + found[on], return_inverse=True)
                order = [own.keep(pairs // 256) for own in members][0]
                symbols, rows = pairs[order] % 256, np.argsort(order)[rows]
            going.append(part)
        streams = np.sort(np.concatenate(going))
        if not len(streams):
            break
    return [bytes(text[1:-1]) if found else None for text, found in zip(texts, whole)]


def _legs(T: int) -> Iterator[tuple[int, int, int]]:
    """As `windows` of the longest text, but the first one in two parts, of which few streams reach the second."""
    short = min(FIRST_LEG, T)
    yield 0, 0, short
    for start, first, stop in windows(LARGEST_MESSAGE + 1, T):
        if stop > short:
            yield start, max(first, short - start), stop


def _is_the_code(state, code):
    """Whether `finish_encoding` ends the code of these symbols like this, from the state of a decoder that has found them."""
    offset, width = int(state[OFFSET]), int(state[RANGE])
    more = len(code) + REGISTER - int(state[POSITION])                               # bytes of the code in the register
    return offset < width and (more == 0 or more == 1 and offset < code[-1] << 56 and width - offset <= 1 << 56)


@njit(cache=True)
def _encode_symbols(state, out, frequencies, symbols, end):
    """end: where in symbols the text ends, perhaps behind them; or -1: its only line feed is the end."""
    for i in range(len(symbols)):
        start, total = np.uint64(0), np.uint64(0)
        for c in range(256):
            start += np.uint64(frequencies[i, c]) if c < symbols[i] else np.uint64(0)
            total += np.uint64(frequencies[i, c])
        out = encode_symbol(state, out, start, frequencies[i, symbols[i]], total)
        if symbols[i] == LINE_FEED and end >= 0:
            out = encode_symbol(state, out, 0 if i == end else 1, 1 if i == end else END - 1, END)
    return out


@njit(cache=True)
def _decode_symbols(states, part, rows, codes, bounds, lines, frequencies, symbols, ended):
    """One symbol of each of the streams `part`, by the frequencies in its row, and whether it is the end of the text."""
    for s in range(len(part)):
        i, row, total = part[s], frequencies[rows[s]], np.uint64(0)
        code = codes[bounds[i]:bounds[i + 1]]
        for f in row:
            total += np.uint64(f)
        symbol, start = find_symbol(row, decode_target(states[i], total))
        decode_symbol(states[i], code, start, row[symbol])
        symbols[s], ended[s] = symbol, symbol == LINE_FEED
        if symbol == LINE_FEED and not lines[i]:
            ended[s] = decode_target(states[i], END) == np.uint64(0)
            decode_symbol(states[i], code, 0 if ended[s] else 1, 1 if ended[s] else END - 1)
