"""Which threads of Python count as others: those of a user's own, not those of known libraries."""

from __future__ import annotations

import threading

from tqdm import TMonitor, tqdm

from geodiag.core.threads import others


def test_threads_of_libraries_are_idle():
    before = others()
    monitor, over = TMonitor(tqdm, 10), threading.Event()
    own = threading.Thread(target=over.wait)
    own.start()
    try:
        assert monitor.is_alive()
        assert others() - before == {own.ident}
        found = []
        aside = threading.Thread(target=lambda: found.append(others()))
        aside.start()
        aside.join()
        assert threading.get_ident() in found[0]
    finally:
        over.set()
        own.join()
        monitor.exit()
