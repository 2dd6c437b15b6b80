"""The models to compress with: the bundled one, one from a file, or a published one; and the fingerprint by which a compressed
file names it.

The fingerprint in a compressed file is the first half of the SHA-256 of an ASCII text, `weights configs`:
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
from pathlib import Path

from minigpt import pretrained
from minigpt.bpe import BPETokenizer
from minigpt.checkpoint import CheckpointError, fingerprint, load_checkpoint
from minigpt.ensemble import Ensemble
from minigpt.model import GPT

from . import packed
from .container import CoderError
from .tokens import TokenModel

BUNDLED = Path(__file__).with_name("shakespeare.gpt")


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
    """16 bytes that depend on every weight of the model, how it uses them, and what its tokens are, as described above."""
    configs = [{name: value for name, value in m.config.to_json().items() if name != "dropout"} for m in model.members]
    text = " ".join([fingerprint(model), *(json.dumps(config, sort_keys=True) for config in configs)])
    if tokenizer:
        vocabulary = b"".join(len(token).to_bytes(4, "little") + token for token in tokenizer.vocabulary)
        text += f" {tokenizer.start} {hashlib.sha256(vocabulary).hexdigest()}"
    return hashlib.sha256(text.encode()).digest()[:16]


def load_fitting(wanted: bytes, path: Path | str | None = None) -> GPT | Ensemble | TokenModel:
    """The model in `path`, by default the bundled one, if `wanted` is its short fingerprint.  CoderError if it is not."""
    model, _ = load(path)
    found = model.fingerprint if isinstance(model, TokenModel) else short_fingerprint(model)
    if found != wanted:
        raise CoderError(f"the file needs the model with the fingerprint {wanted.hex()}, but {path or 'the bundled model'} has "
                         f"{found.hex()}: pass the right one with --model FILE")
    return model
