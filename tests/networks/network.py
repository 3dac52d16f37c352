"""What is drawn of a network, and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

# Parts that a measurement may refuse, in one sentence; all others it must measure.
MAY_REFUSE = frozenset({"kept in a list", "closed over", "sparse", "wrong second derivative"})
TORCH_PARTS = (
    "detached", "no_grad", "straight-through", "kept in a list", "closed over", "unused", "tied",
    "frozen", "scale", "linear", "decay", "wrong second derivative", "custom function", "sparse",
)  # fmt: skip
JAX_PARTS = (
    "detached", "straight-through", "closed over", "unused", "scale", "float", "integer", "linear",
    "decay", "wrong second derivative", "custom function",
)  # fmt: skip
ROWS = 3


@dataclass(frozen=True)
class Network:
    """What is drawn; all else follows from it."""

    widths: tuple[int, ...]
    activation: str
    parts: frozenset[str]
    dtype: str
    seed: int

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters by name, rounded to the dtype, in float64."""
        rng, found = self.rng(), {}
        for i, (rows, cols) in enumerate(zip(self.widths[1:], self.widths, strict=False)):
            found[f"layers.{i}.weight"] = rng.standard_normal((rows, cols))
            found[f"layers.{i}.bias"] = rng.standard_normal(rows)
        width = self.widths[1]
        for part, name, shape in (
            ("kept in a list", "kept", (width,)),
            ("closed over", "outside", (width,)),
            ("unused", "unused", (2,)),
            ("scale", "scale", (1,)),
            ("float", "gain", ()),
            ("linear", "slope", (2,)),
            ("sparse", "table.weight", (ROWS, width)),
            ("own weight", "own", (2,)),
        ):
            if part in self.parts:
                found[name] = np.asarray(rng.standard_normal(shape))
        return {k: x.astype(self.dtype).astype(np.float64) for k, x in found.items()}

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed + 1)
        x, y = rng.standard_normal((ROWS, self.widths[0])), rng.standard_normal(ROWS)
        return x.astype(self.dtype).astype(float), y.astype(self.dtype).astype(float)


def networks(parts: tuple[str, ...], widest: int = 3) -> st.SearchStrategy[Network]:
    width = st.integers(1, widest)
    return st.builds(
        Network,
        st.tuples(width, width) | st.tuples(width, width, width),
        st.sampled_from(("tanh", "softplus", "relu", "identity")),
        st.frozensets(st.sampled_from(parts), max_size=3),
        st.sampled_from(("float64", "float32")),
        st.integers(0, 2**32),
    )


ACTIVATIONS: dict[str, Any] = {
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "relu": torch.relu,
    "identity": lambda x: x,
}


class Truth:
    """L in float64, as a function of the parameters by name; detached parts are held."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.held: dict[str, torch.Tensor] = {}

    def hold(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The value that ``x`` had at the first evaluation."""
        return self.held.setdefault(name, x.detach().clone())

    def loss(self, p: dict[str, torch.Tensor]) -> torch.Tensor:
        net, parts = self.network, self.network.parts
        x, y = (torch.from_numpy(a) for a in net.batch())
        act = ACTIVATIONS[net.activation]
        for i in range(len(net.widths) - 1):
            x = act(x @ p[f"layers.{i}.weight"].T + p[f"layers.{i}.bias"])
            if i == 0:
                for part, name in (("kept in a list", "kept"), ("closed over", "outside")):
                    x = x + p[name] * x if part in parts else x
                if "sparse" in parts:
                    x = x + p["table.weight"][[0, 1, 1]]
                if {"wrong second derivative", "custom function"} & parts:
                    x = torch.tanh(x)
                if "straight-through" in parts:
                    x = x + self.hold("rounded", torch.round(3 * x) / 3 - x)
        for part, name in (("scale", "scale"), ("float", "gain")):
            x = x * p[name] if part in parts else x
        out = x.sum(1)
        loss = ((out - y) ** 2).mean()
        for part in ("detached", "no_grad"):
            if part in parts:
                loss = loss + ((out * out - self.hold(part, 0.7 * out)) ** 2).mean()
        if "tied" in parts:
            loss = loss + (p["layers.0.weight"] ** 3).sum()
        if "linear" in parts:
            loss = loss + 2 * p["slope"].sum()
        if "own weight" in parts:
            loss = loss + 1.5 * (p["own"] ** 2).sum() + p["own"].sum() * out.mean()
        if "decay" in parts:
            loss = loss + 0.15 * sum((v**2).sum() for k, v in p.items() if k != "own")
        return loss

    def at(self, point: dict[str, np.ndarray], names: list[str]) -> Derivatives:
        """Loss, gradient and Hessian over ``names``; the other parameters are constants."""
        whole = {k: torch.from_numpy(v.copy()) for k, v in point.items()}
        sizes = [whole[k].numel() for k in names]
        self.held.clear()

        def of(flat: torch.Tensor) -> torch.Tensor:
            moved = dict(zip(names, flat.split(sizes), strict=True))
            return self.loss(whole | {k: v.reshape(whole[k].shape) for k, v in moved.items()})

        w = torch.cat([whole[k].reshape(-1) for k in names])
        loss = float(of(w))
        gradient = torch.autograd.functional.jacobian(of, w)
        H = torch.autograd.functional.hessian(of, w)
        return Derivatives(loss, gradient.numpy(), H.numpy())


@dataclass(frozen=True)
class Derivatives:
    """At one point."""

    loss: float
    gradient: np.ndarray
    H: np.ndarray
