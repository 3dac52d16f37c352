"""A flax model trained with optax's Adam, whose state tells the Monitor the norm and the threshold.

python examples/flax_mlp.py --steps 200. Look at the ratio S/threshold, in the norm that Adam's P
defines: above 1 at the first step, which has P of one gradient, then rising towards the edge at 1.
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import geodiag_jax

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--log", default=None, help="such as flax.jsonl, for geodiag plot")
options = parser.parse_args()
LR = 1e-2


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.Dense(16)(x))
        return nn.Dense(1)(x)


model = MLP()
x = jax.random.normal(jax.random.key(0), (64, 4))
y = jnp.sin(2 * x[:, :1]) * x[:, 1:2]


def loss(params, x, y):
    return jnp.mean((model.apply(params, x) - y) ** 2)


@jax.jit
def train_step(params, state):
    updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


params = model.init(jax.random.key(1), x)
optimizer = optax.adam(LR)
state = optimizer.init(params)
with geodiag_jax.Monitor(loss, data=(x, y), lr=LR, every=20, log=options.log) as monitor:
    for step in range(options.steps):
        new_params, state = train_step(params, state)
        monitor.observe(step, params, new_params, state)
        params = new_params
print(*monitor.records, sep="\n")
