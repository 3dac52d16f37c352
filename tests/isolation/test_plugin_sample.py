"""A third-party package adds a norm by entry point; broken and clashing packages fail clearly.

Ground truth for ``group_linf``, on linear regression: the loss is the mean over N samples and o
outputs of (W x + b − y)², so with centred inputs its Hessian form is

    ⟨D, H D⟩ = Σ over rows r of (2/(N o)) ‖X d_r‖²  +  (2/o) ‖d_b‖²,

and rows and bias do not interact. On the unit ball (each row, and the bias, of length ≤ 1)

    S = o · (2/(N o)) λ_max(XᵀX) + 2/o.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

SAMPLE = Path(__file__).parents[1] / "plugin_sample"

N, INPUTS, OUTPUTS = 12, 4, 3

DATA = f"""
import json, geodiag
import numpy as np

rng = np.random.default_rng(7)
X = rng.standard_normal(({N}, {INPUTS}))
X = np.linalg.qr(X - X.mean(axis=0))[0] @ np.diag([6.0, 2.0, 1.0, 0.5])
Y = rng.standard_normal(({N}, {OUTPUTS}))
W = rng.standard_normal(({OUTPUTS}, {INPUTS}))
settings = dict(rtol=1e-10, max_hvps=400)
"""

REPORT = """
S = 2 / len(X) * np.linalg.eigvalsh(X.T @ X)[-1] + 2 / Y.shape[1]
print(json.dumps({"value": float(result), "truth": S, "norm": result.norm}))
"""

TORCH = """
import torch

model = torch.nn.Linear(W.shape[1], W.shape[0]).double()
with torch.no_grad():
    model.weight.copy_(torch.from_numpy(W))
batch = torch.from_numpy(X), torch.from_numpy(Y)
result = geodiag.sharpness(
    model, "group_linf", criterion=torch.nn.functional.mse_loss, data=batch, **settings
)
"""

# A dense kernel of JAX is (inputs, outputs): the rows of the norm are its columns.
JAX = """
import jax
import jax.numpy as jnp

def loss(params, x, y):
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)

params = {"kernel": jnp.asarray(W.T), "bias": jnp.zeros(W.shape[0])}
batch = jnp.asarray(X), jnp.asarray(Y)
result = geodiag.sharpness(loss, "group_linf", params=params, data=batch, **settings)
"""


@pytest.fixture(scope="module")
def sample(environments, tmp_path_factory):
    """An environment with the sample plugin installed."""
    source = tmp_path_factory.mktemp("source") / "plugin_sample"
    shutil.copytree(SAMPLE, source)  # so that a build leaves nothing behind in the repository
    made = environments("sample")
    made.install(source)
    return made


@pytest.mark.parametrize("code", [TORCH, JAX], ids=["torch", "jax"])
def test_the_norm_is_measured_by_name(sample, code):
    done = sample.run(DATA + code + REPORT, JAX_ENABLE_X64="1")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    # Row by row the ascent is a power iteration; the singular values 6 and 2 of X contract the
    # error of the value by (2/6)⁴ < 0.02 a step, so two steps in a row that improve it by less
    # than 1e-10 leave less than 1e-11. A witness never exceeds S but by rounding.
    assert got["value"] == pytest.approx(got["truth"], rel=1e-10)
    assert got["value"] <= got["truth"] * (1 + 1e-13)


def test_its_closed_form_is_what_random_search_approaches():
    """The formula above, checked with no code of geodiag: no feasible point exceeds it."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((N, INPUTS))
    X -= X.mean(axis=0)
    values, vectors = np.linalg.eigh(X.T @ X)
    truth = 2 / N * values[-1] + 2 / OUTPUTS

    def form(rows, bias):
        """⟨D, H D⟩: the second difference of the loss, which is quadratic."""

        def loss(t):
            return np.mean((t * (X @ rows.T + bias)) ** 2)

        return loss(1.0) - 2 * loss(0.0) + loss(-1.0)

    unit = np.ones(OUTPUTS) / np.sqrt(OUTPUTS)
    assert form(np.tile(vectors[:, -1], (OUTPUTS, 1)), unit) == pytest.approx(truth, rel=1e-12)
    for _ in range(200):
        rows = rng.standard_normal((OUTPUTS, INPUTS))
        bias = rng.standard_normal(OUTPUTS)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        assert form(rows, bias / np.linalg.norm(bias)) <= truth


def test_check_norm_passes(sample):
    done = sample.run(
        "import numpy as np, geodiag.testing\n"
        "from geodiag_sample_norm import GroupLinf\n"
        "rng = np.random.default_rng(0)\n"
        "example = {'W': rng.standard_normal((3, 4)), 'b': rng.standard_normal(3)}\n"
        "geodiag.testing.check_norm(GroupLinf(), example)\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_command_lists_it_with_its_owner(sample):
    done = sample.geodiag("norms")
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("group_linf")]
    assert row.split()[1] == "sample"
    assert "largest row ℓ2 norm" in row


def _project(folder: Path, name: str, entry_point: str, source: str) -> Path:
    """A plugin distribution of one module, ready to install."""
    module = name.replace("-", "_")
    folder = folder / name
    folder.mkdir()
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        f"""
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "{name}"
        version = "1.0"
        [project.entry-points.geodiag]
        {entry_point} = "{module}"
        [tool.hatch.build.targets.wheel]
        only-include = ["{module}.py"]
        """,
        encoding="utf-8",
    )
    return folder


def test_a_plugin_that_fails_to_import_is_one_warning(environments, tmp_path):
    environment = environments("broken")
    source = "import a_module_that_nobody_has\n"
    environment.install(_project(tmp_path, "broken-plugin", "broken", source))
    done = environment.run(
        "import json, warnings, geodiag, numpy as np\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    names = geodiag.available_norms()\n"
        "    value = float(geodiag.sharpness(np.diag([3.0, 1.0]), 'linf'))\n"
        "print(json.dumps({'names': names, 'value': value,\n"
        "    'warnings': [[w.category.__name__, str(w.message)] for w in caught]}))\n"
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    ((category, message),) = got["warnings"]
    assert category == "PluginWarning"
    for part in ("'broken'", "broken-plugin", "a_module_that_nobody_has"):
        assert part in message
    assert "l2" in got["names"]
    # The trace, for a non-negative diagonal matrix in ℓ∞; rounding of one sum.
    assert got["value"] == pytest.approx(4.0, rel=1e-14)

    listed = environment.geodiag("norms")
    assert listed.returncode == 0
    assert listed.stderr.count("warning") == 1
    assert "broken-plugin" in listed.stderr
    assert "Traceback" not in listed.stderr
    assert "spectral" in listed.stdout


def test_two_plugins_of_one_name_are_an_error_that_names_both(environments, tmp_path):
    environment = environments("clash")
    projects = [_project(tmp_path, n, "same", "") for n in ("first-plugin", "second-plugin")]
    environment.install(*projects)
    done = environment.run(
        "import geodiag\n"
        "try:\n"
        "    geodiag.available_norms()\n"
        "except geodiag.GeodiagError as e:\n"
        "    print(type(e).__name__, e)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PluginError")
    for part in ("'same'", "first-plugin", "second-plugin"):
        assert part in done.stdout

    listed = environment.geodiag("norms")
    assert listed.returncode == 2
    assert "Traceback" not in listed.stderr
    assert "first-plugin" in listed.stderr
    assert "second-plugin" in listed.stderr
