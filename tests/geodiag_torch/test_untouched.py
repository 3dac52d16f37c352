"""A run under a monitor is the one without it, to the bit, whatever state its loss keeps."""

from __future__ import annotations

import math

import pytest

from tests.geodiag_torch.places import PLACES, run
from tests.geodiag_torch.states import STATES

SPREAD = list(PLACES)


@pytest.mark.parametrize("state", STATES)
def test_training_is_the_same(state):
    i = list(STATES).index(state)
    for place in (SPREAD[i % len(SPREAD)], SPREAD[(i + 5) % len(SPREAD)]):
        alone, _ = run(state, place, watched=False)
        watched, records = run(state, place, watched=True)
        assert watched == alone, place
        assert all(math.isfinite(r.sharpness) for r in records), (place, records[0].note)
        assert not any("guard=" in r.note for r in records), place
