"""coder/reference.py, the format as a program in plain NumPy, decodes what the compressor wrote, and nothing else."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from coder import packed
from coder import reference as plain
from coder.compressor import compress
from coder.models import load
from coder.range_coder import Encoder
from coder.verify import LICENSE
from minigpt.checkpoint import save_checkpoint
from minigpt.ensemble import Ensemble
from minigpt.model import GPT, GPTConfig
from minigpt.tokenizer import ByteTokenizer
from tests.golden_coder import TINY, taught

LLAMA = replace(TINY, activation="swiglu", n_kv_head=1, n_hidden=40, rope_theta=500.0, qkv_bias=True, qk_norm=False)
ODD = GPTConfig(block_size=9, n_layer=1, n_head=1, n_embd=14, position="learned", norm="layer", norm_order="last",
                activation="gelu", qk_norm=False, bias=True, tied=True)


def model_file(tmp_path, *models):
    path = tmp_path / "model"
    path.write_bytes(packed.pack(Ensemble(models) if len(models) > 1 else models[0], fineness=9))
    return path


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "coder.reference", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("models", [[TINY], [ODD], [LLAMA], [TINY, replace(TINY, n_embd=24, activation="relu")]])
@pytest.mark.parametrize("size, block_bits", [(1, 18), (40, 18), *(pytest.param(*case, marks=pytest.mark.slow)
                                                                           for case in ((2049, 18), (1040, 10)))])
def test_it_decodes_what_the_compressor_wrote(models, size, block_bits, tmp_path):
    """One stream, two, and two blocks."""
    path = model_file(tmp_path, *(taught(config) for config in models))
    data = (LICENSE + LICENSE)[30:][:size]
    file = compress(data, "static", load(path)[0], block_bits=block_bits)
    assert plain.decode_file(file, lambda: plain.read_model(path)) == data


def test_it_reads_a_checkpoint(tmp_path):
    path, model = tmp_path / "model.safetensors", taught()
    save_checkpoint(path, model, ByteTokenizer())
    file = compress(LICENSE[:200], "static", model)
    assert plain.decode_file(file, lambda: plain.read_model(path)) == LICENSE[:200]


def test_a_packed_model_is_the_same_to_the_bit(tmp_path):
    path = model_file(tmp_path, taught(), taught(replace(ODD, block_size=TINY.block_size)))
    weights = {f"{i}.{name}": array for i, (_, w) in enumerate(plain.read_model(path)) for name, array in w.items()}
    parameters = load(path)[0].parameters()
    assert weights.keys() == parameters.keys()
    assert all(np.array_equal(weights[name], parameters[name].data) for name in weights)


@pytest.mark.parametrize("seed", range(3))
def test_its_range_decoder_is_the_fast_one(seed):
    random = np.random.default_rng(seed)
    frequencies = random.integers(1, 2 ** random.integers(1, 23), (500, 256)).astype(np.uint32)
    symbols = random.integers(0, 256, 500)
    encoder = Encoder()
    encoder.encode(frequencies, symbols)
    decoder = plain.RangeDecoder(encoder.finish())
    assert [decoder.decode(row.tolist()) for row in frequencies] == symbols.tolist()


def test_a_stored_file_needs_no_model():
    data = np.random.default_rng(1).bytes(300)
    assert plain.decode_file(compress(data, "static", taught()), load_model=None) == data


@pytest.mark.parametrize("place", range(0, 120, 7))
def test_a_flipped_bit_or_a_cut_off_file_is_an_error(place, tmp_path):
    file = bytearray(compress(LICENSE[:90], "static", taught()))
    models = [(taught().config, {name: p.data for name, p in taught().parameters().items()})]
    with pytest.raises(plain.FormatError):
        plain.decode_file(bytes(file[:place % len(file)]), lambda: models)
    file[place % len(file)] ^= 4
    with pytest.raises(plain.FormatError):
        plain.decode_file(bytes(file), lambda: models)


def test_another_model_or_another_mode_is_an_error(tmp_path):
    path = model_file(tmp_path, GPT(TINY, 5))
    with pytest.raises(plain.FormatError, match="needs the model"):
        plain.decode_file(compress(LICENSE[:90], "static", taught()), lambda: plain.read_model(path))
    with pytest.raises(plain.FormatError, match="another mode"):
        plain.decode_file(compress(LICENSE, "fast"), None)


def test_the_command_writes_the_file_and_says_one_sentence_where_it_cannot(tmp_path):
    path, file, out = model_file(tmp_path, taught()), tmp_path / "text.mgz", tmp_path / "text"
    file.write_bytes(compress(LICENSE[:60], "static", load(path)[0]))
    assert run(file, "-o", out, "--model", path).returncode == 0 and out.read_bytes() == LICENSE[:60]
    for arguments, said in [((file, "-o", out, "--model", path), "exists already"),
                            ((tmp_path / "none", "-o", tmp_path / "x"), "No such file"),
                            ((file, "-o", tmp_path / "x", "--model", file), "not a whole model"),
                            ((path, "-o", tmp_path / "x"), "not a compressed file")]:
        result = run(*arguments)
        assert result.returncode == 1 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "x").exists()


def test_nothing_below_it_imports_numba():
    code = "import sys, coder.reference; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_it_decodes_a_file_of_the_bundled_model():
    file = compress(b"To be, or not", "static", load(plain.BUNDLED)[0])
    assert plain.decode_file(file, lambda: plain.read_model(plain.BUNDLED)) == b"To be, or not"
