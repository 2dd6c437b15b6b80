"""A block of bytes through a predictor and the range coder, and back.

In the mode static a block of n bytes is cut into S = max(1, min(floor(n / 1024), 64)) contiguous streams, of which the first
n mod S are one byte longer.  They advance in lockstep, so that one pass of the model serves S symbols:

    stream 0    a0 a1 a2 a3         coding order:  a0 b0 c0  a1 b1 c1  a2 b2 c2  a3
    stream 1    b0 b1 b2            into one code, with the GPT's frequencies as they are
    stream 2    c0 c1 c2

A stream is predicted from a start symbol, which is not coded, and its own past alone.  In the other modes there is one stream:
the mixing model combines the GPT's frequencies, if any, with the predictions of contexts and matches, and codes bit by bit.
"""

from collections.abc import Callable

import numpy as np

from .mixing.mixer import MixingDecoder, MixingEncoder
from .predictor import Predictor
from .range_coder import Decoder, Encoder

START_SYMBOL = 10           # a line feed: the input at time 0, before the first symbol of a stream


class Streams:
    """The symbols of a block of `size` bytes in S streams: contiguous parts, of which the first size % S are one symbol longer.

    grid (length + 1, S) int64: row t + 1 holds the symbols at time t, and so row t what they follow; row 0 is START_SYMBOL.
    symbols (size,): a view of the grid, in the order in which they are coded.  (A short stream's last place is behind its end.)
    """

    def __init__(self, size: int, S: int):
        self.size, self.S, self.length = size, S, -(-size // S)
        self.grid = np.full((self.length + 1, S), START_SYMBOL, np.int64)
        self.symbols = self.grid.reshape(-1)[S:S + size]

    def coded(self, start: int, stop: int) -> slice:
        """Where in `symbols` those of the times [start, stop) are."""
        return slice(start * self.S, min(stop * self.S, self.size))

    def places(self) -> np.ndarray:
        """(size,) int64: where in the block each of `symbols` stands."""
        s = np.arange(self.S)
        starts = s * (self.size // self.S) + np.minimum(s, self.size % self.S)
        return (np.arange(self.length)[:, None] + starts).reshape(-1)[:self.size]


def lay_out(predictor: Predictor, data: bytes) -> Streams:
    """The block `data` in as many streams as the predictor wants."""
    block = Streams(len(data), predictor.streams(len(data)))
    block.symbols[:] = np.frombuffer(data, np.uint8)[block.places()]
    return block


class PlainEncoder(Encoder):
    """As MixingEncoder, but nothing is mixed: the frequencies are the range coder's."""

    def encode(self, symbols: np.ndarray, start: int, frequencies: np.ndarray):
        super().encode(frequencies[:len(symbols)], symbols)


class PlainDecoder(Decoder):
    """As MixingDecoder, but nothing is mixed: the frequencies are the range coder's."""

    def decode(self, symbols: np.ndarray, start: int, frequencies: np.ndarray):
        symbols[:] = super().decode(frequencies[:len(symbols)])


def encode_block(predictor: Predictor, data: bytes, progress: Callable = lambda count, taken: None) -> bytes:
    """The code of data, at least one byte.

    progress(symbols, bytes) is called after each window: how many symbols it had, and how long the code is by now.
    """
    block = lay_out(predictor, data)
    encoder = MixingEncoder(predictor.mixing, len(data)) if predictor.mixing else PlainEncoder()
    spans = list(predictor.windows(block.length))
    while spans:
        count = predictor.windows_at_once(block.S)
        now, spans = spans[:count], spans[count:]
        for (start, first, stop), frequencies in zip(now, predictor.predict(block.grid, now)):
            new = block.coded(start + first, stop)
            encoder.encode(block.symbols[new], new.start, frequencies)
            if stop < block.length:
                predictor.update(block.grid[start:stop + 1])
            progress(new.stop - new.start, encoder.size)
    return encoder.finish()


def decode_block(predictor: Predictor, code: bytes, size: int, progress: Callable = lambda count: None) -> bytes:
    """The `size` bytes that `encode_block` made the code of.

    A damaged code gives some other bytes, or ValueError.  progress(symbols) is called after each window.
    """
    block = Streams(size, predictor.streams(size))
    decoder = MixingDecoder(predictor.mixing, size, code) if predictor.mixing else PlainDecoder(code)
    for start, first, stop in predictor.windows(block.length):
        new = block.coded(start + first, stop)
        if predictor.model:
            frequencies = predictor.prefill(block.grid[start:start + first + 1])
            for t in range(start + first, stop):
                if t > start + first:
                    frequencies = predictor.step(block.grid[t])
                at = block.coded(t, t + 1)
                decoder.decode(block.symbols[at], at.start, frequencies)
        else:
            decoder.decode(block.symbols[new], new.start, None)
        if decoder.overrun:
            raise ValueError("the code ends too early")
        if stop < block.length:
            predictor.update(block.grid[start:stop + 1])
        progress(new.stop - new.start)
    data = np.empty(size, np.uint8)
    data[block.places()] = block.symbols
    return data.tobytes()
