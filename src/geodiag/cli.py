"""The ``geodiag`` command: a thin layer over the library.

geodiag norms     the registered norms, with the plugin that owns each
geodiag demo      train on real data and show the edge of stability (needs the demo extras)

Exit status: 0; 2 for wrong usage and for any :class:`geodiag.errors.GeodiagError`, whose text goes
to stderr; 130 when interrupted, 141 when the reader of its output stopped, as shells report both.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import geodiag
from geodiag import demo
from geodiag.errors import GeodiagError
from geodiag.plugins import registry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's arguments).

    Returns:
        The exit status: 0, 2 after a GeodiagError, 130 or 141 when it was cut short.

    Raises:
        SystemExit: by argparse: 2 for wrong usage, 0 after ``--help`` and ``--version``.
    """
    _never_fail_to_print()
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the flush at exit must find no pipe)
        return 141
    except GeodiagError as e:
        print(f"geodiag: error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("geodiag: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geodiag", description="Generalized sharpness, in the geometry your optimizer uses."
    )
    parser.add_argument("--version", action="version", version=f"geodiag {geodiag.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    norms = commands.add_parser("norms", help="list the registered norms")
    norms.set_defaults(run=_norms)

    show = commands.add_parser("demo", help="train on real digits and draw the edge of stability")
    show.add_argument("--framework", choices=sorted(demo.PACKAGES), default="torch")
    show.add_argument(
        "--norm",
        action="append",
        metavar="NAME",
        help="l2, linf or spectral; may be repeated (default: all three)",
    )
    show.add_argument("--steps", type=int, help="training steps of each method")
    show.add_argument(
        "--out",
        type=Path,
        default=Path("geodiag-demo"),
        metavar="DIR",
        help="where the picture and the records go (default: %(default)s)",
    )
    show.add_argument("--seed", type=int, default=0)
    show.set_defaults(run=_demo)
    return parser


def _norms(arguments: argparse.Namespace) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        entries = registry.norms().values()
    for warning in caught:  # a plugin that did not load: without the source line that warned
        print(f"geodiag: warning: {warning.message}", file=sys.stderr)
    rows = [("NAME", "OWNER", "WHAT IT IS"), *((e.name, e.owner, e.summary) for e in entries)]
    name_width, owner_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, owner, summary in rows:
        print(f"{name:<{name_width}}  {owner:<{owner_width}}  {summary}".rstrip())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    return demo.run(
        framework=arguments.framework,
        norms=arguments.norm,
        steps=arguments.steps,
        out=arguments.out,
        seed=arguments.seed,
    )


def _never_fail_to_print() -> None:
    """Let a terminal that cannot show ℓ or √ show a substitute, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
