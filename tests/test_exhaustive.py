"""exp and log of every float; and that the checks of this project can fail: NumPy's own arithmetic does not pass them."""

import numpy as np
import pytest

from minigpt import exhaustive
from minigpt.kernels.matmul import matmul

ROWS = 1, 2, 3, 16, 64


def test_a_part_is_hashed_and_measured():
    (exp, exp_hash, exp_error), (log, log_hash, log_error) = exhaustive.results(1)
    assert (exp, log) == ("exp", "log") and exp_hash != log_hash and len(exp_hash) == 64
    assert exp_error == log_error == 0                      # numbers next to 0: e^x is 1, and the logarithm NaN
    digest, error = exhaustive._part("exp", 240)            # about 0.25
    assert 0.5 < error < 1 and digest != exhaustive._part("exp", 241)[0]


def test_a_wrong_bit_is_found(monkeypatch):
    def wrong(x, y):
        exhaustive.log_of(x, y)
        y.view(np.uint32)[12345] ^= 1
    right = exhaustive._part("log", 250)
    monkeypatch.setitem(exhaustive.KERNELS, "log", (wrong, np.log))
    assert exhaustive._part("log", 250)[0] != right[0]


@pytest.mark.slow
def test_exp_and_log_of_all_floats_are_the_published_ones():
    found = {name: (value, error) for name, value, error in exhaustive.results()}
    assert {name: value for name, (value, _) in found.items()} == exhaustive.EXPECTED
    assert found["exp"][1] < 1 and found["log"][1] < 4


# --- controls: checks that must fail --------------------------------------------------------------------------------------------

def rows_alone_and_together(product):
    """Whether the first row of x W has the same bits alone and among 2, 3, 16 and 64 rows, for some shapes."""
    random = np.random.default_rng(1)
    for K, M in (64, 64), (300, 129), (576, 192), (384, 1536):
        x, W = (random.standard_normal(shape).astype(np.float32) for shape in ((max(ROWS), K), (K, M)))
        if len({product(x[:n], W)[0].tobytes() for n in ROWS}) > 1:
            return False
    return True


def test_our_product_passes_and_numpys_does_not():
    assert rows_alone_and_together(lambda x, W: matmul(x, W, np.empty((len(x), W.shape[1]), np.float32)))
    assert not rows_alone_and_together(np.matmul)


def test_our_exp_is_none_of_numpys():
    x = np.arange(250 * exhaustive.PART, 250 * exhaustive.PART + 2 ** 16, dtype=np.int64).astype(np.uint32).view(np.float32)
    y = np.empty_like(x)
    exhaustive.exp_of(x, y)
    assert y.tobytes() != np.exp(x).tobytes()
