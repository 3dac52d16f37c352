"""A forked child that ends leaves its parent's monitor, sinks and pending record alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from geodiag.records import read_records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

START = """
import os, sys, warnings
import numpy as np, geodiag
from tests.monitored import pair, W
warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads

class Own(geodiag.sinks.Sink):
    def write(self, record):
        print("write", record.step, flush=True)
    def close(self):
        print("close", flush=True)

def in_child(act):
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""

PENDING = """
monitor, w = pair(log=["run.jsonl", Own()])
monitor.before(0)
in_child(monitor.close)
in_child(monitor.abandon)
in_child(lambda: monitor.after({"x": 0.9 * W}))
in_child(lambda: monitor.before(1))
monitor.after({"x": 0.9 * W})
monitor.close()
"""

ATTACHED = """
import torch, geodiag_torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.ones(4, 3), torch.ones(4, 1)
mse = torch.nn.MSELoss()
log = ["run.jsonl", Own()]
monitor = geodiag_torch.attach(optimizer, model, criterion=mse, data=data, every=1, log=log)
# After the monitor's own hook.
fork = optimizer.register_step_pre_hook(lambda *_: None if os.fork() else sys.exit())
mse(model(data[0]), data[1]).backward()
optimizer.step()
os.wait()
fork.remove()
monitor.detach()
"""

ITS_OWN = """
monitor, w = pair(log="run.jsonl")
def train():
    for step in range(3):
        monitor.observe(step, w, {"x": 0.9 * W})
    monitor.close()
in_child(train)
"""


def run(code, folder):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1], [r.step for r in read_records(folder / "run.jsonl")]


@pytest.mark.parametrize("code", [PENDING, ATTACHED], ids=["closes", "exits"])
def test_the_parents_record_is_written_once_and_its_sinks_closed_once(code, tmp_path):
    if code is ATTACHED:
        pytest.importorskip("torch")
    said, steps = run(code, tmp_path)
    assert said == ["write 0", "close"]
    assert steps == [0]


def test_a_child_may_train_with_the_monitor_that_it_inherits(tmp_path):
    """As where a process is forked for the training alone."""
    assert run(ITS_OWN, tmp_path)[1] == [0, 1, 2]
