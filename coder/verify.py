"""python -m coder verify: the hashes of `python -m minigpt verify`, and those of codes and whole compressed files."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace

from minigpt import verify
from minigpt.bpe import train
from minigpt.ensemble import Ensemble
from minigpt.model import GPT, GPTConfig
from minigpt.verify import sha256

from . import codec, tokens
from .compressor import compress, decompress
from .container import CoderError, read
from .mixing.logistic import SQUASH, STRETCH
from .online_tokens import OnlineTokens
from .predictor import make_predictor
from .tokens import TokenModel

# "MODE VERSION: code".  A change of a hash is a new version of the mode, with a line of its own: this program would no longer
# decode the files that it compressed before.
EXPECTED = {
    "tables of the logistic function": "dfe3c4aab532d6e13f704a1117987f4410cb0da00689d269e271632ed562fe5e",
    "static 1: code": "dbac377e656ee2d68a525d8f02735a60bdafdece2d5fdce480cee24b475dc8ae",
    "online 1: code": "4aec496120daf58b28465c03208740fe9a330e1765cb05ffa1874faa0929d18e",
    "online 1, primed: code": "6ebd8d330e307d73c3fcd27f69fcf77e11b6f2d72172b34401c3502631d8c730",
    "online 1, two models: code": "b3d000c81b5253fa74a5e7b31fb6a2da4c4d88507bb1a0c3308bda3b0a37b91f",
    "fast 1: code": "a6a48b6f5ea8e0e40b46b3074e741524f22c2e272cf70f0d4f5f6fe790254523",
    "fast 2: code": "a6a48b6f5ea8e0e40b46b3074e741524f22c2e272cf70f0d4f5f6fe790254523",
    "fast 2, records: code": "c14d5d35d695a1d90f0e613e09afc8b717783aadacfd4d9e0bbe5322a77271e6",
    "tokens 1: code": "b952720ed02de3264590c74a72c54016ec4209866180a843012166fd3cc478f1",
    "online tokens 1: code": "3ce9a5c7a9da1bdb409b46b75502e89bf7afdb66e8e287ef49947849b632b025",
    "scratch 1: code": "10430b0e2ea0d720567a54b7e6abf8cb7330c279d55831e6806a125235aa220c",
    "scratch 1: file": "52185c00225acb9c343ed5370806bf38fbdd3c20124a997971f1b7b6fff1566a",
}
LICENSE = b"""\
MIT License

Copyright (c) 2026 The minigpt authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
TEXT = (LICENSE + LICENSE)[:-1]  # two streams, of which the second is a symbol shorter
RECORDS = LICENSE[:300] + b"".join(struct.pack("<IhB", 300 + 7 * i, i * i % 91 - 45, i % 5) for i in range(300))

MODEL = GPTConfig(block_size=27, n_layer=2, n_head=2, n_embd=36)  # fills no tile, no vector, no half window


def results() -> Iterator[tuple[str, str]]:
    """(name, hash) of the mixing's tables, then of a code or a file in each mode, each decoded and compared.

    CoderError where decoding does not give the original back.
    """
    yield "tables of the logistic function", sha256(SQUASH, STRETCH)
    model = GPT(MODEL, seed=7)
    two = Ensemble([model, GPT(replace(MODEL, n_embd=48), seed=8)])
    cases = {
        "static 1: code": ("static", 1, model, b"", TEXT),
        "online 1: code": ("online", 1, model, b"", TEXT),
        "online 1, primed: code": ("online", 1, model, LICENSE[:500], TEXT),
        "online 1, two models: code": ("online", 1, two, b"", TEXT),
        "fast 1: code": ("fast", 1, None, b"", TEXT),
        "fast 2: code": ("fast", 2, None, b"", TEXT),
        "fast 2, records: code": ("fast", 2, None, b"", RECORDS),
    }
    for name, (mode, version, model, primer, data) in cases.items():
        encoder, decoder = (make_predictor(mode, len(data), model, primer, version) for _ in range(2))
        code = codec.encode_block(encoder, data)
        check(codec.decode_block(decoder, code, len(data)), data, name)
        yield name, hashlib.sha256(code).hexdigest()
    tokenizer = train(LICENSE, 300)
    reads = TokenModel(GPT(replace(MODEL, vocab_size=tokenizer.vocab_size), seed=9), tokenizer, b"")
    makers = {"tokens 1: code": lambda: reads, "online tokens 1: code": lambda: OnlineTokens(reads, len(LICENSE))}
    for name, make in makers.items():
        code = tokens.encode_block(make(), LICENSE)
        check(tokens.decode_block(make(), code, len(LICENSE)), LICENSE, name)
        yield name, hashlib.sha256(code).hexdigest()
    file = compress(TEXT, "scratch")
    check(decompress(file, find_model=None), TEXT, "scratch 1: file")
    yield "scratch 1: code", hashlib.sha256(read(file)[1][0].payload).hexdigest()
    yield "scratch 1: file", hashlib.sha256(file).hexdigest()


def check(decoded, original, name):
    if decoded != original:
        raise CoderError(f"{name}: on this machine, decoding does not give the original back")


def main(as_json: bool) -> int:
    """Print the table of both packages; returns the exit code."""

    def both():
        yield from verify.results()
        yield from results()

    return 0 if verify.report(both(), {**verify.EXPECTED, **EXPECTED}, as_json) else 1
