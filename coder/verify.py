"""python -m coder verify: what `python -m minigpt verify` asks, up to whole compressed files."""

import hashlib
from dataclasses import replace

from minigpt import verify
from minigpt.model import GPT, GPTConfig
from minigpt.verify import sha256

from . import codec
from .compressor import compress, decompress
from .container import CoderError
from .ensemble import Ensemble
from .logistic import SQUASH, STRETCH

# A change here is a new format: whoever has a compressed file can no longer open it.
EXPECTED = {
    "tables of the logistic function": "dfe3c4aab532d6e13f704a1117987f4410cb0da00689d269e271632ed562fe5e",
    "static: code": "dbac377e656ee2d68a525d8f02735a60bdafdece2d5fdce480cee24b475dc8ae",
    "online: code": "89947f4f5a863d35c66e5826291d97b7664468a5d40ceae81f8f409f1b31a585",
    "online, primed: code": "734450f75b4e3981f5992bfb5d3e9cb561cc0704a6c5b210e08479351d7be72d",
    "two models, online: code": "a5ce57616227602d67711d7313572792fa62bc59879d1c762718fa8bf0ad1f33",
    "fast: code": "09aa51201c901ae642e1ea9ec93e164a732e04550f711d83f031aeb2b4939c7a",
    "scratch: file": "ce6a827870b605ecfd0a3a3e38ef191672506e7e9c3e814ba6463b5d4430c8fe",
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


def results():
    """(name, hash) of the mixing's tables, then of a code or a file in each mode, each decoded and compared.

    CoderError where what was compressed does not come back.
    """
    yield "tables of the logistic function", sha256(SQUASH, STRETCH)
    model = GPT(MODEL, seed=7)
    two = Ensemble([model, GPT(replace(MODEL, n_embd=48), seed=8)])
    predictors = {
        "static: code": lambda: codec.static(model),
        "online: code": lambda: codec.online(model, len(TEXT)),
        "online, primed: code": lambda: codec.online(model, len(TEXT), LICENSE[:500]),
        "two models, online: code": lambda: codec.online(two, len(TEXT)),
        "fast: code": lambda: codec.fast(len(TEXT)),
    }
    for name, make in predictors.items():
        code = codec.encode_block(make(), TEXT)
        check(codec.decode_block(make(), code, len(TEXT)), name)
        yield name, hashlib.sha256(code).hexdigest()
    file = compress(TEXT, "scratch")
    check(decompress(file, find_model=None), "scratch: file")
    yield "scratch: file", hashlib.sha256(file).hexdigest()


def check(decoded, name):
    if decoded != TEXT:
        raise CoderError(f"{name}: what was compressed does not come back on this machine")


def main(as_json):
    """Print the table of both packages; returns the exit code."""
    def both():
        yield from verify.results()
        yield from results()
    return 0 if verify.report(both(), {**verify.EXPECTED, **EXPECTED}, as_json) else 1
