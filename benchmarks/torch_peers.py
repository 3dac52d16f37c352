"""Procedures for λ_max in PyTorch: ours, and each peer's through its public interface.

A procedure is made for a case; ``solve(setting, seed, start)`` answers one question. Each of its
``ladders`` lists settings from the cheapest to the strictest. What an operator
costs to make counts in a cold measurement; in a warm one only where it cannot be kept over a step.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

import geodiag
from benchmarks.cases import Case


class Found(NamedTuple):
    """An answer: λ_max, what to start the next measurement with, and the products spent."""

    value: float
    vector: Any
    hvps: int


OURS: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple(
        {"rtol": r} for r in (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 3e-3, 1e-3)
    ),
    tuple({"max_hvps": n} for n in range(2, 40)),
)
DEPTHS = (*range(2, 24), *range(24, 60, 3))


class Ours:
    """``geodiag.sharpness``; a setting is its tolerance on the residual, or its budget."""

    name, module = "geodiag", "geodiag"
    ladders: ClassVar[tuple[Any, ...]] = OURS

    def __init__(self, case: Case) -> None:
        self.problem = geodiag.problem(case.model, criterion=case.criterion, data=case.batch)

    def solve(self, setting: Any, seed: int, start: Any = None) -> Found:
        r = geodiag.sharpness(self.problem, "l2", seed=seed, start=start, **setting)
        return Found(r.value, r, r.num_hvps)


class OursDefault(Ours):
    """At its defaults: a residual of 1e-4, far stricter than 1e-3 in the value."""

    name = "geodiag, default"
    ladders = (({},),)


class Eigenthings:
    """hessian-eigenthings: a fixed number of Lanczos steps, the setting."""

    name, module = "hessian-eigenthings Lanczos", "hessian_eigenthings"
    ladders: ClassVar[tuple[Any, ...]] = (DEPTHS,)

    def __init__(self, case: Case) -> None:
        from hessian_eigenthings import HessianOperator

        def loss(model: Any, batch: Any) -> Any:
            return case.criterion(model(batch[0]), batch[1])

        self.operator = HessianOperator(case.model, [case.batch], loss)

    def solve(self, setting: Any, seed: int, start: Any = None) -> Found:
        from hessian_eigenthings.algorithms.lanczos import lanczos, lanczos_tridiagonal

        if start is None:
            r = lanczos(self.operator, k=1, max_iter=setting, which="LA", seed=seed)
            return Found(float(r.eigenvalues[0]), r.eigenvectors[0], r.iterations)
        # lanczos() takes no start; its kernel, which is public too, does.
        t = lanczos_tridiagonal(self.operator, start, setting)
        beta = t.betas[: t.iterations - 1]
        T = torch.diag(t.alphas) + torch.diag(beta, 1) + torch.diag(beta, -1)
        values, vectors = torch.linalg.eigh(T)
        top = sum(float(c) * q for c, q in zip(vectors[:, -1], t.basis, strict=True))
        return Found(float(values[-1]), top, t.iterations)


class Curvlinops:
    """curvlinops' Hessian in SciPy's ``eigsh``; a setting is (ncv, tol).

    Its check that model and data are deterministic is switched off: it costs several gradients.
    """

    name, module = "curvlinops + eigsh", "curvlinops"
    ladders: ClassVar[tuple[Any, ...]] = tuple(
        tuple((ncv, tol) for tol in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3))
        for ncv in (10, 12, 16, 20, 8, 6, 4, 3)
    )

    def __init__(self, case: Case) -> None:
        from curvlinops import HessianLinearOperator

        self.size = case.size
        parameters = [*case.model.parameters()]
        self.operator = HessianLinearOperator(
            case.model, case.criterion, parameters, [case.batch], check_deterministic=False
        ).to_scipy(dtype=np.float32)

    def solve(self, setting: Any, seed: int, start: Any = None) -> Found:
        from scipy.sparse.linalg import LinearOperator, eigsh

        ncv, tol = setting
        products = 0

        def product(v: Any) -> Any:
            nonlocal products
            products += 1
            return self.operator.matvec(v)

        H = LinearOperator((self.size, self.size), matvec=product, dtype=np.float32)
        if start is None:
            start = np.random.default_rng(seed).standard_normal(self.size)
        start = start.astype(np.float32)
        (value,), vector = eigsh(H, k=1, which="LA", ncv=ncv, tol=tol, v0=start)
        return Found(float(value), vector[:, 0], products)


class PyHessian:
    """PyHessian's power iteration; a setting is (iterations, tolerance). It takes no start."""

    name, module = "PyHessian", "pyhessian"
    ladders: ClassVar[tuple[Any, ...]] = (tuple((1000, 10 ** (-e / 2)) for e in range(4, 12)),)

    def __init__(self, case: Case) -> None:
        self.case = case

    def solve(self, setting: Any, seed: int, start: Any = None) -> Found:
        source = importlib.import_module("pyhessian.hessian")
        plain = source.hessian_vector_product
        most, tol = setting
        products = 0

        def product(*arguments: Any) -> Any:
            nonlocal products
            products += 1
            return plain(*arguments)

        torch.manual_seed(seed)
        mode = self.case.model.training
        source.hessian_vector_product = product
        try:
            with warnings.catch_warnings():  # of backward(create_graph=True), which it rests on
                warnings.simplefilter("ignore", UserWarning)
                h = source.hessian(
                    self.case.model, self.case.criterion, data=self.case.batch, cuda=False
                )
            values, vectors = h.eigenvalues(maxIter=most, tol=tol, top_n=1)
        finally:
            source.hessian_vector_product = plain
            self.case.model.train(mode)
            self.case.model.zero_grad(set_to_none=True)
        return Found(values[0], vectors[0], products)


PROCEDURES = (Ours, OursDefault, Eigenthings, Curvlinops, PyHessian)
