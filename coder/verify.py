"""python -m coder verify: the hashes of `python -m minigpt verify`, and those of codes and whole compressed files."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from minigpt import verify
from minigpt.ensemble import Ensemble
from minigpt.model import GPT, GPTConfig
from minigpt.verify import sha256

from . import codec
from .compressor import compress, decompress
from .container import CoderError
from .mixing.logistic import SQUASH, STRETCH
from .predictor import make_predictor

# A change here is a new format: this program would no longer decode the files that it compressed before.
EXPECTED = {
    "tables of the logistic function": "dfe3c4aab532d6e13f704a1117987f4410cb0da00689d269e271632ed562fe5e",
    "static: code": "dbac377e656ee2d68a525d8f02735a60bdafdece2d5fdce480cee24b475dc8ae",
    "online: code": "4aec496120daf58b28465c03208740fe9a330e1765cb05ffa1874faa0929d18e",
    "online, primed: code": "6ebd8d330e307d73c3fcd27f69fcf77e11b6f2d72172b34401c3502631d8c730",
    "two models, online: code": "b3d000c81b5253fa74a5e7b31fb6a2da4c4d88507bb1a0c3308bda3b0a37b91f",
    "fast: code": "a6a48b6f5ea8e0e40b46b3074e741524f22c2e272cf70f0d4f5f6fe790254523",
    "scratch: file": "09f6059d748ff5f76a77711605d894eabda5f891f1fa4bc8af37cb91ef9c673e",
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
TEXT = (LICENSE + LICENSE)[:-1]         # two streams, of which the second is a symbol shorter

MODEL = GPTConfig(block_size=27, n_layer=2, n_head=2, n_embd=36)         # fills no tile, no vector, no half window


def results() -> Iterator[tuple[str, str]]:
    """(name, hash) of the mixing's tables, then of a code or a file in each mode, each decoded and compared.

    CoderError where decoding does not give the original back.
    """
    yield "tables of the logistic function", sha256(SQUASH, STRETCH)
    model = GPT(MODEL, seed=7)
    two = Ensemble([model, GPT(replace(MODEL, n_embd=48), seed=8)])
    cases = {
        "static: code": ("static", model, b""),
        "online: code": ("online", model, b""),
        "online, primed: code": ("online", model, LICENSE[:500]),
        "two models, online: code": ("online", two, b""),
        "fast: code": ("fast", None, b""),
    }
    for name, (mode, model, primer) in cases.items():
        encoder, decoder = (make_predictor(mode, len(TEXT), model, primer) for _ in range(2))
        code = codec.encode_block(encoder, TEXT)
        check(codec.decode_block(decoder, code, len(TEXT)), name)
        yield name, hashlib.sha256(code).hexdigest()
    file = compress(TEXT, "scratch")
    check(decompress(file, find_model=None), "scratch: file")
    yield "scratch: file", hashlib.sha256(file).hexdigest()


def check(decoded, name):
    if decoded != TEXT:
        raise CoderError(f"{name}: on this machine, decoding does not give the original back")


def main(as_json: bool) -> int:
    """Print the table of both packages; returns the exit code."""
    def both():
        yield from verify.results()
        yield from results()
    return 0 if verify.report(both(), {**verify.EXPECTED, **EXPECTED}, as_json) else 1
