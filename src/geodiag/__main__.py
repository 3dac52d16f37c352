"""``python -m geodiag``: the same as the ``geodiag`` command."""

import sys

from geodiag.cli import main

if __name__ == "__main__":
    sys.exit(main())
