"""The experiments about the geometry of states: projections, couplings and InfoNCE, on cases with a known answer."""

import numpy as np
import pytest

from coder.lab import coupling, infonce, projections


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- Johnson-Lindenstrauss --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", projections.KINDS)
@pytest.mark.parametrize("m", [200, 400])
def test_the_worst_distortion_is_within_the_bound(kind, m):
    x = normal(100, 300)
    assert projections.distortion(x, projections.project(x, m, kind))[0] < projections.bound(100, m) < 1


def test_the_bound_is_the_lemma_solved_for_eps():
    eps = projections.bound(512, 1000)
    assert 4 * np.log(512) / (eps ** 2 / 2 - eps ** 3 / 3) == pytest.approx(1000)
    assert projections.bound(512, 100) == np.inf
    assert projections.bound(2, 10 ** 8) == pytest.approx(np.sqrt(8 * np.log(2) / 10 ** 8), rel=1e-3)


def test_hadamard_is_orthogonal_and_symmetric():
    H = projections.hadamard(np.eye(64))
    assert set(H.ravel()) == {-1, 1}
    np.testing.assert_array_equal(H, H.T)
    np.testing.assert_array_equal(H @ H, 64 * np.eye(64))


def test_all_rows_of_the_hadamard_matrix_lose_nothing():
    x = normal(20, 50)
    distance, angle, neighbours = projections.distortion(x, projections.project(x, 64, "hadamard"))
    assert distance < 1e-12 and angle < 1e-12 and neighbours == 1


@pytest.mark.parametrize("kind", projections.KINDS)
def test_squared_lengths_stay_the_same_on_average(kind):
    x = normal(1, 40)
    lengths = [(projections.project(x, 16, kind, seed) ** 2).sum() for seed in range(400)]
    assert np.mean(lengths) == pytest.approx((x ** 2).sum(), rel=4 * np.sqrt(2 / 16 / 400))


def test_normals_are_normal():
    x = projections.normals(1, "test", 100_000)
    assert abs(x.mean()) < 0.015 and x.var() == pytest.approx(1, abs=0.02) and (x ** 4).mean() == pytest.approx(3, abs=0.1)


# --- Gromov-Wasserstein -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(3))
def test_a_rotated_and_permuted_copy_is_found_at_no_cost(seed):
    x, p = normal(30, 5, seed=seed), np.random.default_rng(seed).permutation(30)
    rotation = np.linalg.qr(normal(5, 5, seed=seed + 9))[0]
    found, j = coupling.align(coupling.distances(x), coupling.distances((3 + x @ rotation)[p]))
    assert abs(found) < 1e-12
    np.testing.assert_array_equal(p[j], np.arange(30))


@pytest.mark.parametrize("seed", range(5))
def test_the_bounds_hold_the_least_of_all_permutations_between_them(seed):
    C1, C2 = (coupling.distances(normal(6, 3, seed=2 * seed + i)) for i in range(2))
    least, j = coupling.exact(C1, C2)
    assert coupling.cost(C1, C2, np.eye(6)[j] / 6) == pytest.approx(least)
    assert coupling.lower_bound(C1, C2)[0] <= least + 1e-12 <= coupling.align(C1, C2)[0] + 2e-12
    for t in np.random.default_rng(seed).dirichlet(np.ones(4), 20):         # the cost is concave: a mixture is no better
        T = sum(w * np.eye(6)[np.random.default_rng(i).permutation(6)] / 6 for i, w in enumerate(t))
        assert coupling.cost(C1, C2, T) >= least - 1e-12


def test_the_gradient_of_the_cost_is_that_of_finite_differences():
    C1, C2, T = coupling.distances(normal(5, 2)), coupling.distances(normal(5, 2, seed=1)), np.abs(normal(5, 5, seed=2))
    G, step = coupling.gradient(C1, C2, T), 1e-6
    for i, j in np.ndindex(5, 5):
        d = np.zeros((5, 5))
        d[i, j] = step
        assert (coupling.cost(C1, C2, T + d) - coupling.cost(C1, C2, T - d)) / 2 / step == pytest.approx(G[i, j], rel=1e-5)


def test_the_cost_is_the_sum_of_its_definition():
    C1, C2, T = coupling.distances(normal(4, 2)), coupling.distances(normal(4, 2, seed=1)), np.abs(normal(4, 4, seed=2))
    assert coupling.cost(C1, C2, T) == pytest.approx(
        np.einsum("ikjl,ij,kl", (C1[:, :, None, None] - C2) ** 2, T, T))


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_assignments_are_scipys(n):
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        M = normal(n, n, seed=seed)
        np.testing.assert_array_equal(coupling.assignment(M), optimize.linear_sum_assignment(M)[1])


@pytest.mark.parametrize("epsilon", [0.2, 0.5])
def test_entropic_couplings_are_those_of_pot(epsilon):
    ot = pytest.importorskip("ot")
    C1, C2, p = coupling.distances(normal(20, 4)), coupling.distances(normal(20, 4, seed=1)), np.full(20, 1 / 20)
    theirs = ot.gromov.entropic_gromov_wasserstein(C1, C2, p, p, "square_loss", epsilon=epsilon, max_iter=2000, tol=1e-13)
    np.testing.assert_allclose(coupling.entropic(C1, C2, epsilon), theirs, atol=1e-6)


def test_pot_finds_nothing_below_the_exact_minimum():
    ot = pytest.importorskip("ot")
    C1, C2, p = coupling.distances(normal(7, 3)), coupling.distances(normal(7, 3, seed=1)), np.full(7, 1 / 7)
    assert ot.gromov.gromov_wasserstein2(C1, C2, p, p, "square_loss") >= coupling.exact(C1, C2)[0] - 1e-9


# --- InfoNCE ----------------------------------------------------------------------------------------------------------

def test_the_gradient_of_infonce_is_that_of_finite_differences():
    z, phi, W = normal(9, 4), normal(9, 3, seed=1), normal(4, 3, seed=2)
    _, gradient = infonce.info_nce(z, phi, W)
    for at in np.ndindex(4, 3):
        d = np.zeros((4, 3))
        d[at] = 1e-2                                    # the products are in float32
        rise = (infonce.info_nce(z, phi, W + d)[0] - infonce.info_nce(z, phi, W - d)[0]) / 2e-2
        assert -rise == pytest.approx(gradient[at], rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("information", [0.5, 2.0])
def test_the_best_critic_attains_the_information_of_normal_pairs(information):
    z, phi, W = infonce.gaussian_pairs(8192, 4, information, "test")
    assert infonce.average(z, phi, W, 512, "test", rounds=16) == pytest.approx(information, abs=0.12)


def test_the_channels_of_the_pairs_correlate_as_they_should():
    z, phi, _ = infonce.gaussian_pairs(50_000, 2, 1.0, "test")
    r = np.corrcoef(z[:, 0], phi[:, 0])[0, 1]
    assert -np.log(1 - r ** 2) == pytest.approx(1.0, abs=0.02)


def test_no_bound_is_above_log_n_nor_above_zero_for_a_critic_that_knows_nothing():
    z, phi, W = infonce.gaussian_pairs(64, 4, 50.0, "test")
    assert infonce.info_nce(z, phi, W)[0] <= np.log(64)
    assert infonce.info_nce(z, phi, 0 * W)[0] == pytest.approx(0, abs=1e-12)


def test_a_learned_critic_comes_near_the_best_on_new_pairs():
    z, phi, best = infonce.gaussian_pairs(8192, 2, 1.0, "test")
    W = infonce.learn(z[:4096], phi[:4096], 128, 300, "test", rate=0.1)
    got, most = (infonce.average(z[4096:], phi[4096:], w, 128, "test") for w in (W, best))
    assert most - 0.1 < got < most + 0.05
