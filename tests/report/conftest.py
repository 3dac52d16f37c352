"""Pages without a script, but where the test is of the interactive ones."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def static_pages(request, monkeypatch):
    if request.path.name != "test_interactive.py":
        monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
