"""Whether a point is far from that of the last search, so that its witness is not enough.

A refresh follows one local maximum. Where S or the loss has changed, another one may have overtaken
it, whichever way they changed. Both changes are known without further products.
"""

from __future__ import annotations

from geodiag.estimators.base import Options, SearchMode
from geodiag.results import Searched

# A change by these factors asks for an exploratory search, and by the second pair for one from many
# starts: of S since the last search, of the loss since the last from many starts. Measured along
# runs of small networks (tests/monitoring/test_along_runs.py).
S_DRIFT, LOSS_DRIFT = 1.1, 1.07
S_JUMP, LOSS_JUMP = 1.44, 1.21


def search_for(
    searched: Searched, values: tuple[float, ...], loss: float, ordinary: float = 1.0
) -> SearchMode | None:
    """The search that is due after a refresh; None if the point is near.

    Args:
        searched: what the last search found.
        values: ⟨d, Hd⟩ now: at the old witness, and after the refresh.
        loss: L(w) now; NaN if it does not matter.
        ordinary: a factor by which the loss changes without meaning.
    """
    changed, loss_changed = searched.value_change(*values), searched.loss_change(loss)
    if changed > S_JUMP or searched.loss_change_since_cold(loss) > max(LOSS_JUMP, ordinary):
        return SearchMode.DISTANT
    drifted = changed > S_DRIFT or loss_changed > max(LOSS_DRIFT, ordinary)
    return SearchMode.EXPLORATORY if drifted else None


def further_search(options: Options, values: tuple[float, ...], loss: float) -> SearchMode | None:
    """The same for the witness that ``options`` tell of; None where a mode was asked for."""
    known = options.age is not None and options.mode is None
    return search_for(options.searched, values, loss) if known else None


def distance_note(options: Options, value: float, loss: float) -> str:
    """What the result of such a search says."""
    was = options.searched
    return (
        f"start= is from a distant point: S {was.value:.3g} and loss {was.loss:.3g} at its last "
        f"search, loss {was.cold_loss:.3g} at its last cold one; S {value:.3g} and loss {loss:.3g} "
        "after a refresh here; another search was made"
    )
