"""An equinox model trained by sign descent in ℓ∞: its sharpness is that of ℓ∞, not λ_max.

python examples/equinox_mlp.py --steps 200. Look at S, which rises towards the threshold 2/lr, both
in ℓ∞, and at D, the curvature along the steps: far from the edge it is small, at the edge 2/lr.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp

import geodiag_jax

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--log", default=None, help="such as equinox.jsonl, for geodiag plot")
options = parser.parse_args()
LR = 1e-3

x = jax.random.normal(jax.random.key(0), (64, 4))
y = jnp.sin(2 * x[:, :1]) * x[:, 1:2]
model = eqx.nn.MLP(4, 1, 16, 2, activation=jnp.tanh, key=jax.random.key(1))
params, static = eqx.partition(model, eqx.is_inexact_array)


def loss(params, x, y):
    return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)


optimizer = geodiag_jax.non_euclidean_gd(LR, "linf")  # an optax transformation
state = optimizer.init(params)


@jax.jit
def train_step(params, state):
    updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
    return eqx.apply_updates(params, updates), state


with geodiag_jax.Monitor(loss, "linf", data=(x, y), lr=LR, every=20, log=options.log) as monitor:
    for step in range(options.steps):
        new_params, state = train_step(params, state)
        monitor.observe(step, params, new_params)
        params = new_params
print(*monitor.records, sep="\n")
