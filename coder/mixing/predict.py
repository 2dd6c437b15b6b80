"""One bit: each component predicts it, mixers weight the predictions, APMs refine the mix, and all learn what the bit was.

Throughout, `partial` is the bits of the byte so far, behind a leading 1; `bit` is the number of them, 0 .. 7.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .contexts import (ALL_CONTEXTS, FAST_CONTEXTS, HISTORY, LINE_START, MOST_CONTEXTS, ORDERS, PERIOD, WORD_LENGTH,
                       hash_contexts, update_past)
from .histories import (LONG_MATCH, MATCHES, SHORT_MATCH, find_buckets, find_match, find_runs, predict_expected,
                        predict_histories, prefetch_buckets, update_expected, update_histories, update_matches, update_runs)
from .logistic import P_ONE, X_LIMIT, dot_product, refine, train, update_apm

# Each mixer selects a row of its weights by a small context.  The number of rows of each (the contexts are in `predict`):
SELECTORS = 256, 16 * 8, 256            # partial; length of the long match, confidence of the orders; order 1
MORE_SELECTORS = 256, 256, 256          # not in fast mode: second byte back; word length, bit, short match; column
RECORD_SELECTORS = *SELECTORS, 256      # of records, in fast mode: column
GPT_SELECTOR = 16 * 8                   # confidence of the GPT, confidence of the orders
GPT_INPUTS = 3
BIAS = 256                              # an input of 1.0
FIRST_RATE, LAST_RATE = 20, 3           # learning rates of the mixers, in units of 2^-12
RATE_PERIOD = 2048                      # bytes after which the rate falls by 1
FINAL_RATE = 2                          # of the final mixer
APM_1_CONTEXTS = 2 ** 16                # order 1 and partial
APM_3_CONTEXTS = 2 ** 13                # order 3 and partial, hashed: so few that the curves stay in a cache


class Scratch(NamedTuple):
    """Scratch buffers for a byte or a bit, and which parts of the model there are; made once for all bytes of a call."""
    fast: bool
    gpt: bool                       # the mixers have inputs for a GPT, and a selector
    has_frequencies: bool           # it predicts these bytes; it does not predict a primer
    orders: int                     # how many of the selected contexts are orders whose confidence counts
    values: np.ndarray              # uint64: of the contexts; for its length, see `hash_contexts`
    hashes: np.ndarray              # (N,) uint64: of the selected contexts
    buckets: np.ndarray             # (N,) uint64: index in table
    history_states: np.ndarray      # (N,) int64: index in p_statemaps, or -1
    run_entries: np.ndarray         # (N,) int64: index in runs
    expected: np.ndarray            # (G,) int64: 256 + byte, or 0
    lengths: np.ndarray             # (G,) int64: of the matches and runs that expect them
    length_states: np.ndarray       # (G,) int64: index in length_statemaps, or -1
    sums: np.ndarray                # (512,) int64: the GPT's frequencies as a binary tree, see `sum_frequencies`
    inputs: np.ndarray              # (n,) int32: 3 or 4 of each context, G of matches and runs, a bias, GPT_INPUTS of the GPT
    rows: np.ndarray                # (K,) int64: the rows of weights that are selected
    outputs: np.ndarray             # (K,) int32: of the mixers


class Prediction(NamedTuple):
    """The prediction of a bit, and what `update` needs to know of it."""
    p: int                          # that it is 1
    mixed: int                      # the same, before the APMs
    apm_1_point: int
    apm_3_point: int
    apm_gpt_point: int


@njit(cache=True)
def begin_bytes(memory, fast, gpt, start, frequencies):
    """The Scratch for bytes from position `start` on."""
    N, G, K, n = len(memory.selected), len(memory.length_statemaps), len(memory.first_rows), memory.weights.shape[1]
    contexts = MOST_CONTEXTS if memory.past[PERIOD] else FAST_CONTEXTS if fast else ALL_CONTEXTS
    scratch = Scratch(
        fast, gpt, len(frequencies) > 0, np.searchsorted(memory.selected, ORDERS),
        values=np.zeros(contexts, np.uint64), hashes=np.zeros(N, np.uint64), buckets=np.zeros(N, np.uint64),
        history_states=np.zeros(N, np.int64), run_entries=np.zeros(N, np.int64),
        expected=np.zeros(G, np.int64), lengths=np.zeros(G, np.int64), length_states=np.zeros(G, np.int64),
        sums=np.zeros(512, np.int64), inputs=np.zeros(n, np.int32), rows=np.zeros(K, np.int64), outputs=np.zeros(K, np.int32))
    hash_next(memory, scratch, start)
    return scratch


# Numba counts references to each array read from a tuple, atomically, which would take three quarters of this loop's time.
# Functions that allocate nothing can do without its runtime (NRT), which does that: the caller holds all arrays anyway.
UNCOUNTED = dict(cache=True, _nrt=False)


@njit(**UNCOUNTED)
def hash_next(memory, scratch, position):
    """Hash the contexts of the byte at `position`, and prefetch the buckets of its first nibble."""
    hash_contexts(memory.past, memory.text, position, memory.followers, memory.matches, memory.selected, scratch.values,
                  scratch.hashes)
    prefetch_buckets(memory.table, scratch.hashes, 0)


@njit(**UNCOUNTED)
def begin_byte(memory, scratch, position, frequencies, i):
    """Compute what is the same for all bits of the byte: which bytes are expected, and the sums of the GPT's frequencies."""
    for k in range(MATCHES):
        scratch.expected[k], scratch.lengths[k] = find_match(memory.matches, k, memory.text, position, memory.past[HISTORY],
                                                             memory.last_seen)
    find_runs(memory.runs, scratch.hashes, scratch.run_entries, scratch.expected, scratch.lengths)
    if scratch.has_frequencies:
        sum_frequencies(frequencies, i, scratch.sums)


@njit(cache=True)
def sum_frequencies(frequencies, i, sums):
    """Write sums (512,) int64: at 256 + byte its frequency, at each `partial` the sum over the bytes that begin so."""
    for byte in range(256):
        sums[256 + byte] = np.int64(frequencies[i, byte])
    for partial in range(255, 0, -1):
        sums[partial] = sums[2 * partial] + sums[2 * partial + 1]


@njit(**UNCOUNTED, forceinline=True)
def predict(memory, scratch, position, partial, bit):
    """The Prediction of the next bit: the `bit`-th, 0 .. 7, of the byte at `position`, after those in `partial`."""
    inputs, stretch, squash = scratch.inputs, memory.stretch, memory.squash
    N, G = len(scratch.hashes), len(scratch.expected)
    last_three = np.int64(memory.past[HISTORY] & np.uint64(0xFFFFFF))
    order_1 = last_three & 255
    if bit & 3 == 0:
        find_buckets(memory.table, scratch.hashes, scratch.buckets)
    known = predict_histories(memory.table, scratch.buckets, nibble_node(partial, bit), partial, scratch.orders,
                              memory.p_statemaps, memory.node_statemaps, scratch.history_states, inputs, stretch)
    first_expected = (3 if scratch.fast else 4) * N
    predict_expected(scratch.expected, scratch.lengths, partial, bit, memory.length_statemaps, scratch.length_states, inputs,
                     first_expected, stretch)
    inputs[first_expected + G] = BIAS
    gpt_x, apm_gpt_point = 0, 0
    if scratch.has_frequencies:
        p = min(max((scratch.sums[2 * partial + 1] << 16) // scratch.sums[partial], 1), P_ONE - 1)
        gpt_x = np.int64(stretch[p])
        refined, apm_gpt_point = refine(memory.apm_gpt, partial | order_1 << 8, gpt_x)
        inputs[-3], inputs[-2], inputs[-1] = gpt_x, (p - P_ONE // 2) >> 4, stretch[refined]

    rows = scratch.rows
    match_length = min(scratch.lengths[LONG_MATCH], 31) if scratch.length_states[LONG_MATCH] >= 0 else 0
    rows[0], rows[1], rows[2] = partial, (match_length >> 1) * 8 + known, order_1
    if not scratch.fast:
        rows[3] = last_three >> 8 & 255
        rows[4] = min(np.int64(memory.past[WORD_LENGTH]), 15) * 16 + bit * 2 + (scratch.length_states[SHORT_MATCH] >= 0)
        rows[5] = min(position - np.int64(memory.past[LINE_START]), 255)
    elif memory.past[PERIOD]:
        rows[3] = min(position % np.int64(memory.past[PERIOD]), 255)
    if scratch.gpt:
        rows[-1] = (min(abs(gpt_x), 2047) >> 7) * 8 + known
    for k in range(len(rows)):
        rows[k] += memory.first_rows[k]
        scratch.outputs[k] = dot_product(memory.weights, rows[k], inputs)

    x = dot_product(memory.final_weights, partial, scratch.outputs)
    mixed = np.int64(squash[x + X_LIMIT])
    by_order_1, apm_1_point = refine(memory.apm_1, partial | order_1 << 8, x)
    hashed = (last_three * 0x2F0B4C47 >> 16 ^ partial * 0x9E35) & APM_3_CONTEXTS - 1
    by_order_3, apm_3_point = refine(memory.apm_3, hashed, x)
    p = (2 * mixed + by_order_1 + by_order_3 + 2) >> 2
    return Prediction(p, mixed, apm_1_point, apm_3_point, apm_gpt_point)


@njit(**UNCOUNTED, forceinline=True)
def update(memory, scratch, position, partial, bit, prediction, y):
    """Learn that the bit is y.  The buckets of the next nibble are prefetched first, and arrive in the meantime."""
    longer = partial << 1 | y
    if bit == 7:
        end_byte(memory, scratch, position, longer & 255)
    elif bit == 3:
        prefetch_buckets(memory.table, scratch.hashes, longer)
    update_histories(memory.table, scratch.buckets, nibble_node(partial, bit), partial, memory.p_statemaps,
                     memory.node_statemaps, scratch.history_states, y, memory.reciprocals)
    update_expected(memory.length_statemaps, scratch.length_states, y, memory.reciprocals)
    rate = max(FIRST_RATE - position // RATE_PERIOD, LAST_RATE)
    for k in range(len(scratch.rows)):
        error = (y << 16) - np.int64(memory.squash[scratch.outputs[k] + X_LIMIT])
        train(memory.weights, scratch.rows[k], scratch.inputs, error, rate)
    train(memory.final_weights, partial, scratch.outputs, (y << 16) - prediction.mixed, FINAL_RATE)
    update_apm(memory.apm_1, prediction.apm_1_point, y)
    update_apm(memory.apm_3, prediction.apm_3_point, y)
    if scratch.has_frequencies:
        update_apm(memory.apm_gpt, prediction.apm_gpt_point, y)


@njit(**UNCOUNTED)
def end_byte(memory, scratch, position, byte):
    """Learn the byte at `position`, and hash the contexts of the next."""
    update_runs(memory.runs, scratch.run_entries, byte)
    update_past(memory.past, memory.text, position, memory.followers, byte)
    update_matches(memory.matches, memory.text, byte)
    hash_next(memory, scratch, position + 1)


@njit(cache=True)
def nibble_node(partial, bit):
    """The nibble's bits so far, behind a leading 1."""
    depth = bit & 3
    return 1 << depth | partial & (1 << depth) - 1
