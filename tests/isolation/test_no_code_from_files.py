"""Reading never executes: nothing in the source can turn the bytes of a file into code.

Logs, states and data are parsed by ``json``, ``csv`` and ``numpy.fromfile``, which make plain
values. Checked over the whole source, so that what nobody thought of is seen too; and once in the
large, by Python's own audit hooks: reading hostile files compiles, imports and unpickles nothing.
"""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
FILES = sorted(SRC.rglob("*.py"))
MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml",
    "code", "codeop", "runpy", "imp", "xmlrpc", "plistlib", "copyreg",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint"}
# np.load, torch.load, joblib.load ... an entry point's load() is the one below.
METHODS = {"load", "loads", "save", "unsafe_load", "full_load", "read_pickle", "fromstring"}
ALLOWED = {
    "json.loads": "values only",
    "torch.load": "with weights_only=True alone: tensors and plain values",
    "ep.load": "an installed package that declares itself a plugin; never a file that is read",
}
KEYWORDS = {"allow_pickle", "weights_only"}


def offences(source: str) -> Iterator[str]:
    """What in a source text could run code out of data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield str(node.module)
            yield from (a.name for a in node.names if a.name in METHODS)
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if node.attr in METHODS and text not in ALLOWED:
                yield text
        elif isinstance(node, ast.Call):
            text = ast.unparse(node)
            if text.startswith("torch.load(") and "weights_only=True" in text:
                continue
            if text.startswith("torch.load("):
                yield text
            yield from (k.arg for k in node.keywords if k.arg in KEYWORDS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_runs_data(path):
    assert list(offences(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from numpy import load",
        "read = np.load",
        "eval(text)",
        "run = exec",
        "__import__(name)",
        "import yaml",
        "import torch.utils\ntorch.utils.data.dataset.load(path)",
    ],
)
def test_an_offence_is_seen(source):
    assert list(offences(source))


def test_what_is_allowed_is_used():
    """An exception that nobody needs any more goes."""
    text = "\n".join(p.read_text("utf-8") for p in FILES)
    assert all(name in text for name in ALLOWED)


READS = """
import json, sys, warnings
import numpy as np
import geodiag
from geodiag.experiments.reproduction.data import cifar10
from geodiag.report.watch import Tail
from pathlib import Path

RUNS = {"compile", "exec", "import", "pickle.find_class", "marshal.loads", "subprocess.Popen",
        "os.system", "code.__new__", "ctypes.dlopen", "socket.connect"}
folder = Path(".")
H = np.diag([2.0, 1.0])
monitor = geodiag.Monitor(H)
geodiag.sharpness(H), geodiag.threshold(0.1)  # what is imported late, is by now
seen = []
def hook(event, args):
    if event in RUNS:
        seen.append((event, str(args)[:100]))
def attempt(read, *arguments):
    try:
        read(*arguments)
    except geodiag.GeodiagError:
        pass
warnings.simplefilter("ignore")
attempt(geodiag.read_records, folder / "pickle.jsonl")
sys.addaudithook(hook)
for file in sorted(folder.iterdir()):
    if file.is_file():
        attempt(geodiag.read_records, file)
        attempt(Tail(file).update)
        try:
            state = json.loads(file.read_bytes())
        except ValueError:
            continue
        attempt(monitor.load_state_dict, state)
        attempt(lambda: geodiag.sharpness(H, start=state))
attempt(cifar10, folder / "cifar")
compile("0", "the control", "eval")  # the hook does see what it is to see
print(json.dumps(seen))
"""


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (print, ("boom",))


def test_reading_hostile_files_runs_nothing(tmp_path, python):
    hostile = {
        "pickle.jsonl": pickle.dumps(Bomb()),
        "pickle.csv": pickle.dumps(Bomb(), protocol=0),
        "python.jsonl": b"__import__('os').system('echo boom')\n",
        "python.csv": b"=cmd|' /C calc'!A0,__import__('os')\n",
        "yaml.jsonl": b"!!python/object/apply:os.system ['echo boom']\n",
        "object.jsonl": b'{"__reduce__": ["os.system", "boom"], "step": 1}\n',
        "state.jsonl": b'{"version": 1, "tracker": {"__class__": "os"}, "schedule": "eval"}\n',
        "start.jsonl": b'{"witness": {"x": "__import__"}, "age": 0, "norm": "L2()"}\n',
        "template.jsonl": b'{"step": 1, "note": "{0.__class__} %s ${x} {{x}}"}\n',
    }
    for name, data in hostile.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1.bin").write_bytes(pickle.dumps(Bomb()))
    done = python(READS)
    assert "boom" not in done.stdout
    assert [event for event, _ in json.loads(done.stdout)] == ["compile"]
