"""What is known of H from some of its products, against the dense matrix in coordinates."""

from __future__ import annotations

import numpy as np

from geodiag.certificates.form_mixture import (
    concatenate,
    expansion,
    hessian_model,
    last_pairs,
    mix_forms,
    orthonormal,
)
from geodiag.core.spaces import Space
from geodiag.envelopes import Form, Weights
from geodiag.envelopes.vector import Diagonal
from tests.truth import symmetric

N = 12
P = symmetric(N, 1, np.geomspace(0.1, 10, N))
H = symmetric(N, 2)
SPACE = Space({"x": (N,)})
FORM = Form(1.0, lambda x: {"x": x["x"] @ P}, lambda g: {"x": np.linalg.solve(P, g["x"].T).T}, None)


def known(count: int, seed: int = 3):
    X = np.random.default_rng(seed).standard_normal((count, N))
    return {"x": X}, {"x": X @ H}


def test_an_orthonormal_basis_of_dependent_directions():
    directions, _ = known(4)
    X = np.concatenate([directions["x"], directions["x"][:2] + directions["x"][1:3]])
    basis, images = orthonormal(FORM, {"x": X * 1e3}, {"x": X @ H * 1e3})
    Q = basis["x"]
    # Four independent rows; rounding is that of the largest number met, H and P of size 10.
    np.testing.assert_allclose(Q @ P @ Q.T, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(images["x"], Q @ H, atol=1e-9)
    np.testing.assert_allclose(X - X @ P @ Q.T @ Q, 0, atol=1e-9)


def test_the_model_agrees_on_the_known_and_is_symmetric():
    basis, images = orthonormal(FORM, *known(5))
    M = hessian_model(FORM, basis, images)({"x": np.eye(N)})["x"]
    np.testing.assert_allclose(M, M.T, atol=1e-12)
    np.testing.assert_allclose(basis["x"] @ M, basis["x"] @ H, atol=1e-12)
    rest = np.linalg.svd(basis["x"] @ P)[2][5:]  # P-orthogonal to the known: zero there
    np.testing.assert_allclose(rest @ M @ rest.T, 0, atol=1e-12)
    whole = orthonormal(FORM, *known(N))
    np.testing.assert_allclose(hessian_model(FORM, *whole)({"x": np.eye(N)})["x"], H, atol=1e-9)


def test_expansion_contains_the_images_of_the_top_ritz_vectors():
    pair = known(5)
    new = expansion(FORM, pair, 2)
    Q, G = (x["x"] for x in orthonormal(FORM, *pair))
    top = np.linalg.eigh(Q @ H @ Q.T)[1][:, -2:]
    led = np.linalg.solve(P, (top.T @ G).T).T
    led = led - led @ P @ Q.T @ Q
    np.testing.assert_allclose(new["x"] @ P @ Q.T, 0, atol=1e-10)
    np.testing.assert_allclose(np.sum(new["x"] @ P * new["x"], axis=1), 1.0)
    lengths = np.sqrt(np.sum(led @ P * led, axis=1))
    np.testing.assert_allclose(new["x"] * lengths[:, None], led, atol=1e-10)
    assert expansion(FORM, known(N), 2) is None


def test_last_pairs():
    one, two = known(2), known(3, seed=4)
    directions, images = last_pairs(concatenate(one, two), 3)
    assert np.array_equal(directions["x"], two[0]["x"])
    assert np.array_equal(images["x"], two[1]["x"])
    assert len(last_pairs(one, 9)[0]["x"]) == 2


def test_a_mixture_beats_every_atom():
    """H diagonal: the best diagonal form is H itself, an even mixture of the two atoms."""
    envelope = Diagonal(SPACE)
    h = np.r_[np.full(6, 3.0), np.full(6, 1.0)]
    atoms: list[Weights] = [(np.r_[np.full(6, 1.0), np.full(6, 0.02)],)]
    atoms.append((np.r_[np.full(6, 0.02), np.full(6, 1.0)],))
    eye = {"x": np.eye(N)}
    (p,) = mix_forms(envelope, atoms, eye, {"x": np.diag(h)})
    # The optimum is t(H) = 24. Softening adds up to SOFT·log 12 = 1.2%, the last steps as much.
    assert 24.0 * (1 - 1e-12) <= p.sum() * np.max(h / p) <= 24.0 * 1.025
