"""The mode tokens: any bytes through a language model and back, its trie, its windows, and what is refused."""

import hashlib
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder import __main__ as program
from coder import models, reference, tokens
from coder.compressor import compress, decompress, salvage
from coder.container import CoderError, read
from coder.models import short_fingerprint
from coder.online_tokens import OnlineTokens
from coder.range_coder import Encoder, finish_encoding, start_encoding
from coder.tokens import Context, TokenModel, decode_block, encode_block, encode_tokens, make_trie, weight_sums
from coder.verify import LICENSE
from minigpt.bpe import BPETokenizer, train
from minigpt.model import GPT, GPTConfig
from tests.golden_coder import taught
from tests.test_pretrained import write_folder

# A control token in front, bytes without a token, and at the end the bytes of another token once more, and a row for no token.
LEARNED = train(LICENSE, 300)
WITHOUT = b"\x00\x06\xc0\xff~"
VOCABULARY = [b"", *(b"" if token in [bytes([b]) for b in WITHOUT] else token for token in LEARNED.vocabulary), b"the", b""]
TOKENIZER = BPETokenizer(VOCABULARY, LEARNED.merges, "gpt2", start=0)
V = len(VOCABULARY)
SMALL = dict(n_embd=16, n_head=2, n_layer=2, vocab_size=V)
CONFIGS = {
    "llama": GPTConfig(block_size=64, n_kv_head=1, activation="swiglu", norm="rms", qk_norm=False, **SMALL),
    "gpt2": GPTConfig(block_size=20, position="learned", norm="layer", activation="gelu", qk_norm=False, bias=True, **SMALL),
    "one token": GPTConfig(block_size=1, **SMALL),
}
UTF8 = "naïve — 'quoted', 日本語, 𝄞 and so on; ".encode()
CASES = {
    "one byte": b"x", "escaped byte": b"\xff", "every byte": bytes(range(256)), "text": LICENSE[:700], "UTF-8": UTF8,
    "cut UTF-8": UTF8[2:-1] + UTF8[3:20], "zeros": bytes(90), "noise": np.random.default_rng(3).bytes(300),
}


def random_model(name="llama", seed=1):
    """A random model with large weights, so that its predictions depend on all that it has read."""
    model = GPT(CONFIGS[name], seed)
    for parameter in model.parameters().values():
        parameter.data *= np.float32(3)
    return TokenModel(model, TOKENIZER, short_fingerprint(model, TOKENIZER))


cached_model = lru_cache(random_model)


@pytest.fixture(params=CONFIGS)
def model(request):
    return cached_model(request.param)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several streams, and windows that are full soon."""
    monkeypatch.setattr(tokens, "STREAM_BYTES", 100)
    monkeypatch.setattr(tokens, "WINDOW", 24)
    monkeypatch.setattr(tokens, "CHUNK", 7)


# --- any bytes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_bytes_come_back(model, data):
    counts = []
    code = encode_block(model, data, lambda count, taken: counts.append(count))
    assert sum(counts) == len(data)
    counts.clear()
    assert decode_block(model, code, len(data), counts.append) == data
    assert sum(counts) == len(data)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.sampled_from(list(CONFIGS)))
def test_any_bytes_come_back(data, name):
    model = cached_model(name)
    assert decode_block(model, encode_block(model, data), len(data)) == data


@pytest.mark.parametrize("size", [1, 99, 200, 201, 815, 4000])
def test_streams_are_the_whole_block(size):
    sizes = tokens.sizes_of(size)
    assert sum(sizes) == size and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert len(sizes) == max(1, min(size // 100, tokens.STREAMS))


def test_a_damaged_code_is_an_error_or_gives_other_bytes():
    model, data, refused = random_model(), LICENSE[:250], 0
    code = encode_block(model, data)
    for place in range(0, len(code) - 1, 9):
        damaged = code[:place] + bytes([code[place] ^ 16]) + code[place + 1:]
        try:
            assert decode_block(model, damaged, len(data)) != data
        except ValueError:
            refused += 1
    with pytest.raises(ValueError):
        decode_block(model, b"", 4000)
    assert refused


# --- the trie -------------------------------------------------------------------------------------------------------------

def plain_symbols(token, weights, escape):
    """(frequencies, symbol) of each node on the way to a token, from {token: weight} alone; None is the escape."""
    symbols, prefix, below = [], b"", sorted(weights)
    while len(below) > 1 or not prefix and not symbols:
        depth, parts = len(prefix), {}
        for each in below:
            parts.setdefault(each[depth:depth + 1], []).append(each)
        sizes = [sum(weights[each] for each in parts[key]) for key in sorted(parts)] + ([escape] if not symbols else [])
        k, before = 0, 0
        while sum(sizes) >> k >= 2 ** 31:
            k += 1
        starts = []
        for size in sizes:
            starts.append(before >> k)
            before += size
        frequencies = [b - a + 1 for a, b in zip(starts, [*starts[1:], before >> k])]
        if token is None:
            return [(frequencies, len(sizes) - 1)]
        key = token[depth:depth + 1]
        symbols.append((frequencies, sorted(parts).index(key)))
        prefix, below = prefix + key, parts[key]
    return symbols


def test_the_trie_codes_as_sums_over_the_vocabulary_do():
    trie, generator = make_trie(VOCABULARY), np.random.default_rng(5)
    coded = [TOKENIZER.ids[token] for token in sorted(TOKENIZER.ids)] + [V + byte for byte in WITHOUT]
    for scale in 0, 1, 12, 100:
        logits = generator.normal(0, scale, (len(coded), V)).astype(np.float32)
        plain = Encoder()
        for row, i in zip(range(len(coded)), coded):
            sums = [int(s) for s in weight_sums(logits, row, trie.order)]
            weights = {VOCABULARY[j]: b - a for j, a, b in zip(trie.order, sums, sums[1:])}
            escape = sums[-1] - sums[-2]
            assert escape == (sum(weights.values()) >> 16) + 1
            symbols = plain_symbols(VOCABULARY[i] if i < V else None, weights, escape)
            for frequencies, symbol in symbols + ([([1] * 256, i - V)] if i >= V else []):
                plain.encode(np.array([frequencies], np.uint32), np.array([symbol]))
        state, out = start_encoding()
        out = encode_tokens(state, out, logits, np.array(coded), trie)
        assert finish_encoding(state, out).tobytes() == plain.finish()


def test_weights_are_the_softmax_of_the_tokens_that_stand_for_bytes():
    logits = np.random.default_rng(6).normal(0, 4, (1, V)).astype(np.float32)
    logits[0, 0] = 50                                               # a control token: out of the question
    trie = make_trie(VOCABULARY)
    own = logits[0, trie.order].astype(np.float64)
    expected = np.exp(own - own.max())
    weights = np.diff(weight_sums(logits, 0, trie.order)[:-1].astype(np.float64))
    np.testing.assert_allclose(weights / 2 ** 32, expected, rtol=1e-6, atol=2 ** -31)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_still_code_every_token(value):
    trie, ids = make_trie(VOCABULARY), np.array([5, 66, V - 3, V + 255])
    logits = np.zeros((len(ids), V), np.float32)
    logits[:2], logits[2:, 66] = value, value
    state, out = start_encoding()
    code = finish_encoding(state, encode_tokens(state, out, logits, ids, trie))
    assert tokens.decode_tokens(tokens.start_decoding(code), code, logits, trie).tolist() == ids.tolist()


def test_a_vocabulary_may_hold_no_bytes_at_all():
    model = TokenModel(GPT(GPTConfig(vocab_size=2, block_size=4, n_layer=1, n_head=1, n_embd=4)),
                       BPETokenizer([b"", b""], [], "gpt2"), bytes(16))
    assert decode_block(model, encode_block(model, b"abc"), 3) == b"abc"


# --- windows --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rows", [1, 3, 5])
def test_the_code_does_not_depend_on_how_much_is_computed_at_once(model, rows, monkeypatch):
    code = encode_block(model, LICENSE[:600])
    monkeypatch.setattr(tokens, "rows_at_once", lambda S: rows)
    assert encode_block(model, LICENSE[:600]) == code
    assert decode_block(model, code, 600) == LICENSE[:600]


def logits_of(model, ids, parts):
    """Logits (S, T, V) of ids (S, T), read in parts of at most so many tokens."""
    context, found, t = Context(model, len(ids)), [], 0
    while t < ids.shape[1]:
        count = min(parts, context.room or context.chunk)
        found.append(context.read(ids[:, t:t + count]))
        t += count
    return np.concatenate(found, axis=1)[:, :ids.shape[1]]


def test_a_token_attends_to_the_window_and_to_nothing_before_it(model):
    gpt, ids = model.model, np.random.default_rng(2).integers(0, V, (2, 150))
    logits = logits_of(gpt, ids, 7)
    assert np.array_equal(logits, logits_of(gpt, ids, 1))
    context = Context(gpt, 1)
    first = context.window // context.chunk * context.chunk         # then room is made
    assert np.array_equal(logits[:, :first], gpt.forward(ids[:, :first]))

    def reached(t):
        """The last time that depends on the token t.  Layers pass it on beyond the window, but a restart ends that."""
        changed = ids.copy()
        changed[:, t] = (ids[:, t] + 1) % V
        times = np.flatnonzero((logits_of(gpt, changed, 7) != logits).any(axis=(0, 2)))
        assert times[0] == t
        return times[-1]
    assert reached(1) < 149
    assert reached(0) == (0 if context.window == 1 else 149)        # the first token stays, whatever else is dropped


def test_the_first_token_is_spared():
    gpt, ids = random_model().model, np.random.default_rng(2).integers(0, V, (1, 28))
    logits, cache = logits_of(gpt, ids, 7), gpt.new_cache(1, 24)
    gpt.forward(ids[:, :21], cache=cache)
    cache.drop(10, spared=1)                                        # 21 + 7 - 3/4 of 24
    assert np.array_equal(logits[:, 21:], gpt.forward(ids[:, 21:], cache=cache))


def test_positions_begin_again_where_the_model_has_no_more():
    gpt = random_model("llama").model                               # 64 positions, windows of 24
    ids = np.random.default_rng(2).integers(0, V, (1, 63 + 40))
    logits = logits_of(gpt, ids, 7)                                 # 63 = 9 * 7: the next 7 have no position
    alone = Context(gpt, 1)
    cache = gpt.new_cache(1, alone.window)
    gpt.forward(np.hstack([ids[:, :1], ids[:, 63 - 11:63]]), cache=cache)
    assert np.array_equal(logits[:, 63:70], gpt.forward(ids[:, 63:70], cache=cache))


# --- files ----------------------------------------------------------------------------------------------------------------

TEXT = LICENSE[:2000]


def test_a_file_of_several_blocks_comes_back_and_names_its_model():
    model = random_model()
    model.fingerprint = b"01234567"
    repeated = b"\n" * 1500                                          # escapes nothing, and compresses even at random
    file = compress(repeated, "tokens", likely(model, b"\n"), block_bits=10)
    header, blocks = read(file)
    assert (header.mode, header.fingerprint, len(blocks)) == ("tokens", model.fingerprint, 2)
    assert not any(block.stored for block in blocks)
    assert decompress(file, lambda fingerprint: model) == repeated
    damaged = file[:-1] + bytes([file[-1] ^ 1])
    with pytest.raises(CoderError, match="block 2 of 2"):
        decompress(damaged, lambda fingerprint: model)
    assert salvage(damaged, lambda fingerprint: model) == (repeated[:1024], [(1024, 1500)])
    with pytest.raises(CoderError, match="was made with the model 30313233"):
        decompress(file, lambda fingerprint: TokenModel(model.model, TOKENIZER, bytes(8)))
    with pytest.raises(reference.FormatError, match="another mode"):
        reference.decode_file(file, None)


def likely(model, token):
    """The model, changed so that it expects that token always: after each token, the residual stream points to it."""
    gpt = GPT(model.config, 1)
    for name, parameter in gpt.parameters().items():
        parameter.data[...] = 0 if name.endswith("weight") else parameter.data
    gpt.tokens.weight.data[:, 0] = 1
    gpt.head.weight.data[0, TOKENIZER.ids[token]] = 5
    model.model = gpt.quantise()
    return model


def test_what_does_not_compress_is_stored():
    file = compress(CASES["noise"], "tokens", random_model())
    assert read(file)[0].mode == "stored" and decompress(file, None) == CASES["noise"]
    assert decompress(compress(b"", "tokens", random_model()), None) == b""


@pytest.mark.parametrize("mode, makes, says", [
    ("static", random_model, "predicts tokens"), ("tokens", taught, "--model"),
    ("online tokens", taught, "--model"),
])
def test_a_mode_needs_a_model_of_its_kind(mode, makes, says):
    with pytest.raises(CoderError, match=says):
        compress(TEXT, mode, makes())


def test_the_mode_takes_no_primer():
    with pytest.raises(CoderError, match="does not learn"):
        compress(TEXT, "tokens", random_model(), primer=b"primer")


def test_the_fingerprint_depends_on_weights_config_vocabulary_and_start():
    def name(seed=1, config=CONFIGS["llama"], vocabulary=VOCABULARY, start=0):
        return short_fingerprint(GPT(config, seed), BPETokenizer(vocabulary, [], "gpt2", start))
    other = GPTConfig(block_size=65, n_kv_head=1, activation="swiglu", norm="rms", qk_norm=False, **SMALL)
    moved = [*VOCABULARY[:1], VOCABULARY[1] + VOCABULARY[2], b"", *VOCABULARY[3:]]
    assert len({name(), name(seed=2), name(config=other), name(vocabulary=moved), name(start=1), name(start=None)}) == 6
    assert name() == name()


def test_the_command_line_takes_a_folder(tmp_path, capsys):
    folder, file, out = write_folder(tmp_path / "model", "llama"), tmp_path / "text", tmp_path / "back"
    file.write_bytes(TEXT[:300])
    program.main(["compress", "-q", "--model", folder, str(file)])
    program.main(["decompress", "-q", "--model", folder, str(file) + ".mgz", "-o", str(out)])
    assert out.read_bytes() == TEXT[:300]
    for arguments, says in [
            (["compress", "-f", "--mode", "static", "--model", folder, str(file)], "predicts tokens"),
            (["compress", "-f", "--model", str(tmp_path), str(file)], "config.json"),
            (["compress", "-f", "--model", str(tmp_path / "no.gguf"), str(file)], "there is no model at"),
            (["pack", folder, str(tmp_path / "packed")], "is not packed")]:
        with pytest.raises(SystemExit) as exit:
            program.main(arguments)
        assert says in str(exit.value) and "\n" not in str(exit.value)


def test_a_published_model_is_loaded_with_its_tokens(tmp_path):
    model, trained_on = models.load(write_folder(tmp_path / "model", "qwen2"))
    assert isinstance(model, TokenModel) and trained_on is None and len(model.fingerprint) == 8
    with pytest.raises(CoderError, match="needs the model with the fingerprint 0000"):
        models.load_fitting(bytes(16), tmp_path / "model")
    assert models.load_fitting(model.fingerprint, tmp_path / "model").fingerprint == model.fingerprint


# --- the mode online tokens -----------------------------------------------------------------------------------------------

def online(size, primer=b""):
    return OnlineTokens(cached_model("llama"), size, primer)


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_bytes_come_back_online(data):
    code = encode_block(online(len(data)), data)
    assert decode_block(online(len(data)), code, len(data)) == data


def test_blocks_and_a_primer_are_learned_on_both_sides():
    model, text = cached_model("llama"), (LICENSE[:700] + CASES["noise"]) * 3
    file = compress(text, "online", model, block_bits=10)
    header, blocks = read(file)
    assert header.mode == "online tokens" and len(blocks) == 3
    assert decompress(file, lambda fingerprint: model) == text
    primed = compress(LICENSE[:700], "online", model, primer=LICENSE[:600])
    assert len(primed) < len(compress(LICENSE[:700], "online", model)) - 100
    assert decompress(primed, lambda fingerprint: model, primer=LICENSE[:600]) == LICENSE[:700]
    with pytest.raises(reference.FormatError, match="another mode"):
        reference.decode_file(file, None)


def test_the_online_code_is_golden_and_does_not_depend_on_how_much_is_computed_at_once(monkeypatch):
    data = LICENSE[:600] + CASES["noise"]
    code = encode_block(online(len(data)), data)
    assert hashlib.sha256(code).hexdigest() == "2ddaf44ab1690b274857d8f5c084f713f591d4e6bd48e39cd6d2bde60223e0f9"
    monkeypatch.setattr(tokens, "rows_at_once", lambda S: 3)
    assert encode_block(online(len(data)), data) == code


def test_a_damaged_online_code_is_an_error_or_gives_other_bytes():
    data = LICENSE[:250]
    code = encode_block(online(250), data)
    for place in range(0, len(code) - 1, 29):
        damaged = code[:place] + bytes([code[place] ^ 16]) + code[place + 1:]
        try:
            assert decode_block(online(250), damaged, 250) != data
        except ValueError:
            pass
    with pytest.raises(ValueError):
        decode_block(online(4000), b"", 4000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_leave_the_bias_finite(value):
    encoder, ids, logits = online(99), np.array([5, 66, V - 3, V + 255]), np.zeros((4, V), np.float32)
    logits[:2], logits[2:, 66] = value, value
    streams = np.zeros(4, np.int64)
    encoder.begin([50])
    state, out = start_encoding()
    code = finish_encoding(state, encoder.encode(state, out, logits, ids, streams))
    assert np.isfinite(encoder.learned.bias).all()
    decoder = online(99)
    decoder.begin([50])
    assert decoder.decode(tokens.start_decoding(code), code, logits, streams).tolist() == ids.tolist()
