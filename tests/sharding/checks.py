"""What must hold on four devices; run by test_sharding.py in an interpreter that simulates them,
or as it is where there are as many.

    python -m tests.sharding.checks equal refused ...

The truth is the same measurement on one device. Both are float64 and differ by the order of sums
of at most a few hundred terms: 1e-6 leaves room for what an ascent of some steps makes of 1e-13.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import geodiag
import geodiag_jax
from geodiag.estimators import Ascent
from geodiag_jax import programs
from tests import perturbation
from tests.sharding import models
from tests.sharding.models import Compilations, Largest, draw, kept, loss, put, split

COUNT = Compilations()
ELEMENTWISE: dict[str, Any] = {"l2": "l2", "linf": "linf", "custom": Largest()}
NORMS: dict[str, Any] = ELEMENTWISE | {"spectral": "spectral"}


def close(got: Any, want: Any, what: str) -> None:
    np.testing.assert_allclose(float(got), float(want), rtol=1e-6, err_msg=what)


def ask(norm: Any, params: Any, data: Any, f: Any = loss) -> geodiag.SharpnessResult:
    """A measurement that takes few programs to compile."""
    options = {} if norm == "l2" else {"estimator": Ascent(starts=1), "max_hvps": 6}
    return geodiag.sharpness(f, norm, params=params, data=data, **options)


def equal() -> None:
    """Data-parallel, and parameters in pieces too: values, shardings, nothing compiled twice."""
    params, batch = draw()
    over = models.mesh()
    ways = {
        "data": (put(params, over), put(batch, over, "data")),
        "both": (split(params, over), put(batch, over, "data")),
    }
    for name, norm in NORMS.items():
        want = ask(norm, params, batch)
        for way, (p, b) in ways.items():
            if way != "both" and name != "linf":
                continue
            what = f"{name}, {way}"
            got = ask(norm, p, b)
            close(got, want, what)
            close(got.dual_norm, want.dual_norm, what)
            assert got.num_hvps == want.num_hvps, what
            if name in ELEMENTWISE:
                assert kept(got.direction, p), what
            COUNT.since()
            moved = {name: x * 1.01 for name, x in p.items()}
            COUNT.since()
            ask(norm, moved, b)
            assert COUNT.since() == 0, f"{what}: compiled anew"


def oracle() -> None:
    """Loss, gradient, products and random starts, by every engine, and over several batches."""
    params, batch = draw()
    over = models.mesh()
    p, b = split(params, over), put(batch, over, "data")
    two = [put(tuple(x[i : i + 4] for x in batch), over, "data") for i in (0, 4)]
    single = geodiag.problem(loss, params=params, data=batch).at()
    start = single.space.random(np.random.default_rng(0))
    want = single.hvp(start)
    engines = ("linearize", "recompute", "reverse", "finite-difference")
    for data, engine in [*((b, e) for e in engines), (two, "auto")]:
        found = geodiag.problem(loss, params=p, data=data, engine=engine).at()
        assert found.space.split
        d = found.space.random(np.random.default_rng(0))
        assert kept(d, p), "a random start"
        for name, x in d.items():
            np.testing.assert_array_equal(x, start[name])
        assert kept(found.gradient(), p), engine
        assert kept(found.point(), p), engine
        product = found.hvp(d)
        assert kept(product, p), engine
        for name, x in product.items():
            np.testing.assert_allclose(x, want[name], rtol=1e-6, atol=1e-9)
        close(found.loss(), single.loss(), engine)
        stacked = found.hvps({name: jnp.stack([x, 2 * x]) for name, x in d.items()})
        np.testing.assert_allclose(stacked["w"][1], 2 * want["w"], rtol=1e-6, atol=1e-9)
    host = geodiag.sharpness(loss, params=p, data=batch, start=start)
    close(host, geodiag.sharpness(loss, params=params, data=batch), "a start on one device")
    assert kept(host.direction, p)


def tracked() -> None:
    """``tracker`` within jit: values of one device, the witness split, one compilation."""
    params, batch = draw()
    over = models.mesh()
    tracker = geodiag_jax.tracker(loss, "linf", check=2)
    answers = {}
    for way, p, b in (
        ("one device", jax.tree_util.tree_map(jnp.asarray, params), batch),
        ("mesh", split(params, over), put(batch, over, "data")),
    ):
        measure, state = jax.jit(tracker.measure), tracker.init(p)
        answers[way] = []
        for step in range(3):
            answer, state = measure(state, p, *b)
            answers[way].append(float(answer.value))
            assert step < 1 or COUNT.since() == 0
            COUNT.since()
        if way == "mesh":
            assert kept(state.witness, p)
    np.testing.assert_allclose(answers["mesh"], answers["one device"], rtol=1e-6)


def explicit() -> None:
    """A mesh of Explicit axes: the loss is called with them, the solvers see Auto ones."""
    kinds = jax.sharding.AxisType
    over = models.mesh(axis_types=(kinds.Explicit,) * 2)
    params, batch = draw()

    def stated(params: Any, x: Any, y: Any) -> Any:
        hidden = jnp.tanh(x @ params["w"] + params["b"])
        hidden = jnp.einsum("ni,ij->nj", hidden, params["z"], out_sharding=PartitionSpec("data"))
        both = jnp.einsum("ni,kij->knj", jnp.tanh(hidden), params["heads"])
        return jnp.mean((both[0] + both[1] ** 2 - y) ** 2)

    p, b = split(params, over), put(batch, over, "data")
    want = ask("linf", params, batch)
    got = ask("linf", p, b, stated)
    close(got, want, "explicit")
    assert {n: x.sharding.spec for n, x in got.direction.items()}["w"] == models.SPECS["w"]
    close(ask("linf", put(params, over), put(batch, over, "data")), want, "explicit data")
    with jax.set_mesh(over):
        refuses("measure within", params=p, data=b)
        with jax.set_mesh(Mesh(over.devices, over.axis_names)):
            close(ask("linf", p, b, stated), want, "explicit, set_mesh")
    tracker = geodiag_jax.tracker(loss, "linf")
    with pytest.raises(geodiag.errors.ParameterError, match="Auto axes"):
        jax.jit(tracker.measure)(tracker.init(p), p, *b)


def refuses(says: str, f: Any = loss, **arguments: Any) -> None:
    with pytest.raises(geodiag.errors.GeodiagError, match=says):
        geodiag.sharpness(f, **arguments)


def refused() -> None:
    """Placements that JAX refuses end in an error that says what to do."""
    params, batch = draw()
    over, devices = models.mesh(), jax.devices()
    p = split(params, over)
    turned = Mesh(over.devices[::-1], over.axis_names)
    half = Mesh(over.devices[:1], over.axis_names)
    refuses("one mesh", params=p, data=jax.device_put(batch, devices[0]))
    refuses("one mesh", params=p, data=put(batch, half, "model"))
    refuses("one mesh", params=p | {"b": put(params["b"], turned)}, data=batch)
    refuses("mixed devices", params=p | {"b": jax.device_put(params["b"], devices[1])}, data=batch)

    def uneven(params: Any, x: Any, y: Any) -> Any:
        wide = jnp.concatenate([params["b"], jnp.ones(1)])
        return jnp.sum(jax.sharding.reshard(wide, PartitionSpec("model")) ** 2)

    axes = models.mesh(axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    refuses("not a multiple", f=uneven, params=put(params, axes), data=put(batch, axes))
    # What nobody has placed goes where the rest is.
    want = geodiag.sharpness(loss, params=params, data=batch)
    mixed = geodiag.sharpness(loss, params=p | {"b": jnp.asarray(params["b"])}, data=batch)
    close(mixed, want, "host arrays among sharded ones")
    # One device, but not the first, with a batch from host memory.
    there = geodiag.sharpness(loss, params=jax.device_put(params, devices[1]), data=batch)
    assert {x.device for x in there.direction.values()} == {devices[1]}
    close(there, want, "the second device")


def gathers() -> None:
    """Programs over split parameters hold no collective but reductions: nothing is gathered."""
    params, batch = draw()
    over = models.mesh()
    p, b = split(params, over), put(batch, over, "data")
    texts: dict[str, str] = {}
    run = programs._run

    def recorded(job: Any, operands: Any, arguments: Any) -> Any:
        text = run.lower(job, operands, arguments).compile().as_text()
        texts[type(job.program).__name__] = text
        return run(job, operands, arguments)

    programs._run = recorded
    try:
        for name, norm in (ELEMENTWISE | {"l1": "l1"}).items():
            texts.clear()
            geodiag.sharpness(loss, norm, params=p, data=b)
            assert {"SteepestDirection", "Certify"} <= set(texts)
            for program, text in texts.items():
                assert "all-reduce" in text or program == "Combination"
                for gather in ("all-gather", "all-to-all", "collective-permute"):
                    assert gather not in text, f"{name}: {gather} in {program}"
    finally:
        programs._run = run


def pieces() -> None:
    """Parameters in pieces, each device with the whole batch."""
    params, batch = draw()
    over = models.mesh()
    p, b = split(params, over), put(batch, over)
    for name, norm in NORMS.items():
        got, want = ask(norm, p, b), ask(norm, params, batch)
        close(got, want, name)
        assert name not in ELEMENTWISE or kept(got.direction, p), name


def whole() -> None:
    """The default search with its surrogate, and a warm start.

    In l∞ rounding decides which of several maxima, within a per cent here, the search ends at. The
    truth is a product of plain JAX on one device: the value is attained, and no larger than the
    dual norm of the image, as at a maximum.
    """
    params, batch = draw()
    over = models.mesh()
    p, b = split(params, over), put(batch, over, "data")
    for name, dual, apart in (("linf", 1, 1e-2), ("l1", np.inf, 1e-6)):
        want = geodiag.sharpness(loss, name, params=params, data=batch)
        got = geodiag.sharpness(loss, name, params=p, data=b)
        np.testing.assert_allclose(float(got), float(want), rtol=apart, err_msg=name)
        d = {key: np.asarray(got.direction[key]) for key in params}
        image = jax.jvp(jax.grad(lambda w: loss(w, *batch)), (params,), (d,))[1]
        flat, there = (np.concatenate([np.ravel(x[key]) for key in d]) for x in (d, image))
        close(got, flat @ there, name)
        close(got, np.linalg.norm(there, dual), name)
        again = geodiag.sharpness(loss, name, params=p, data=b, start=got)
        assert float(again) >= float(got) * (1 - 1e-9), name


def certified() -> None:
    """An upper bound: the same on one device up to what its stopping rule leaves."""
    params, batch = draw()
    over = models.mesh()
    p, b = split(params, over), put(batch, over, "data")
    options = {"certificate": True, "max_hvps": 40}
    want = geodiag.sharpness(loss, "l2", params=params, data=batch, **options)
    got = geodiag.sharpness(loss, "l2", params=p, data=b, **options)
    assert got.upper is not None
    np.testing.assert_allclose(got.upper, want.upper, rtol=1e-4)
    assert float(got) <= got.upper * (1 + 1e-9)


def main(names: list[str]) -> None:
    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) >= 4, jax.devices()
    for name in names:
        globals()[name]()
        print(name, "passed", flush=True)


if __name__ == "__main__":
    perturbation.install_as_parent()
    main(sys.argv[1:])
