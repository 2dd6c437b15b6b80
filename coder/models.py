"""The models to compress with: the bundled one, one from a file, or a published one; and the fingerprint by which a compressed
file names it.

The fingerprint in a compressed file is the first 8 bytes of the SHA-256 of an ASCII text, `weights configs`:
    weights     the SHA-256, in lower-case hexadecimal, over all arrays, sorted by name (an ensemble's begin with 0., 1., ...):
                of each a line "name dtype shape" that ends in a line feed, as in "head.weight float32 (128, 256)", then
                its bytes, row by row and little-endian (minigpt/checkpoint.py)
    configs     of each member, separated by spaces: the fields of its config that decide how the weights are used, which is
                all but dropout, sorted by name, as Python's json.dumps writes an object: {"activation": "relu2", "bias":
                false, ...}; without those of LEFT_OUT that have their default (minigpt/config.py)
The text of a model with tokens goes on with a space and
    vocabulary  the start token, or None, a space, and the SHA-256, in lower-case hexadecimal, over the tokens in the order of
                their ids: of each, its length in bytes (4 bytes, little-endian), then its bytes; none of a control token
"""

import hashlib
import json
import os
from pathlib import Path

from minigpt import pretrained
from minigpt.bpe import BPETokenizer
from minigpt.checkpoint import CheckpointError, fingerprint, load_checkpoint
from minigpt.corpus import cache_folder
from minigpt.ensemble import Ensemble
from minigpt.files import write_atomically
from minigpt.model import GPT

from . import packed
from .container import CHECK_SIZE, CoderError
from .tokens import TokenModel

BUNDLED = Path(__file__).with_name("shakespeare.gpt")
# Every model that was ever bundled, so that a file that needs it can say which package has it.
RELEASED = {
    "537e8241a1b34f48": "coder/shakespeare.gpt of version 0.1.0",
}


def load(path: Path | str | None = None) -> tuple[GPT | Ensemble | TokenModel, str | None]:
    """The model in `path`, a packed model or a checkpoint, by default the bundled one; and the SHA-256 (hexadecimal) of the
    text that it was trained on, if that is known.  Or a published one, with its tokens: smollm2, a GGUF file or a folder.

    CheckpointError or CoderError where the file is missing, foreign, damaged, or of another version.
    """
    path = path or BUNDLED
    if path == "smollm2" or Path(path).suffix == ".gguf" or Path(path).is_dir():
        try:
            model, tokenizer, _ = pretrained.load(str(path))
        except pretrained.PretrainedError as error:
            raise CoderError(str(error)) from None
        return TokenModel(model, tokenizer, short_fingerprint(model, tokenizer)), None
    try:
        with open(path, "rb") as file:
            if file.read(len(packed.MAGIC)) == packed.MAGIC:
                return packed.unpack(packed.MAGIC + file.read())
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except OSError:
        pass                                    # load_checkpoint says it better
    checkpoint = load_checkpoint(path)
    return checkpoint.model, checkpoint.run.get("text_sha256")


def short_fingerprint(model: GPT | Ensemble, tokenizer: BPETokenizer | None = None) -> bytes:
    """8 bytes that depend on every weight of the model, how it uses them, and what its tokens are, as described above."""
    configs = [{name: value for name, value in m.config.to_json().items() if name != "dropout"} for m in model.members]
    text = " ".join([fingerprint(model), *(json.dumps(config, sort_keys=True) for config in configs)])
    if tokenizer:
        vocabulary = b"".join(len(token).to_bytes(4, "little") + token for token in tokenizer.vocabulary)
        text += f" {tokenizer.start} {hashlib.sha256(vocabulary).hexdigest()}"
    return hashlib.sha256(text.encode()).digest()[:CHECK_SIZE]


def load_fitting(wanted: bytes, path: Path | str | None = None) -> GPT | Ensemble | TokenModel:
    """The model whose short fingerprint is `wanted`: it must be the one in `path`; without a path, it is one that `keep` has
    kept, or the bundled one.  CoderError where it is not."""
    kept = None if path else find_kept(wanted)
    model, _ = load(path or kept)
    found = model.fingerprint if isinstance(model, TokenModel) else short_fingerprint(model)
    if found != wanted:
        known = RELEASED.get(wanted.hex())
        raise CoderError(f"the file needs the model with the fingerprint {wanted.hex()}" + (f" ({known})" if known else "") +
                         f", but {path or kept or 'the bundled model'} has {found.hex()}: pass the right one with --model FILE")
    return model


def keep(model: GPT | Ensemble | TokenModel, path: Path | str) -> Path | None:
    """Keep a copy of the model in `path` in the cache folder, under its fingerprint, for `load_fitting`; of a published one,
    only where it is.  Returns the copy's path, or None where it cannot be written."""
    published = isinstance(model, TokenModel)
    name = model.fingerprint if published else short_fingerprint(model)
    target = cache_folder(None) / "models" / (name.hex() + (".path" if published else ".gpt"))
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            place = path if path == "smollm2" else os.path.abspath(path)
            write_atomically(target, str(place).encode() if published else packed_copy(model, path))
        return target
    except OSError:
        return None


def packed_copy(model: GPT | Ensemble, path: Path | str | None = None, fineness: float | None = None) -> bytes:
    """The model in `path` as a packed model: its file, if it is packed; else quantised, or, without a fineness, as it is."""
    file = Path(path or BUNDLED).read_bytes()
    return file if file.startswith(packed.MAGIC) else packed.pack(model, None, fineness)


def find_kept(wanted: bytes) -> Path | str | None:
    """Where the model of that short fingerprint is that `keep` has kept, if there is one."""
    target = cache_folder(None) / "models" / wanted.hex()
    if target.with_suffix(".gpt").is_file():
        return target.with_suffix(".gpt")
    try:
        return target.with_suffix(".path").read_text()
    except (OSError, ValueError):
        return None
