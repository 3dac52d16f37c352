"""The ``geodiag`` command: a thin layer over the library.

geodiag norms      the registered norms, with the plugin that owns each
geodiag demo       train on real data and show the edge of stability (needs the demo extras)
geodiag reproduce  run the paper's experiments on small data (needs the demo extras)
geodiag measure    measure checkpoints: a table, a log and a figure
geodiag plot       draw the logs of one or more runs (needs the plot extra)
geodiag watch      follow the logs of runs in the terminal (needs the watch extra)
geodiag completion print a script that completes commands and options in a shell

Exit status: 0; 2 for wrong usage and for any :class:`geodiag.errors.GeodiagError`, whose text goes
to stderr; 130 when interrupted; 141 when the reader of its output stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import geodiag
from geodiag.checkpoints import measure
from geodiag.errors import GeodiagError, printable
from geodiag.experiments import demo
from geodiag.experiments.reproduction import runner
from geodiag.experiments.reproduction.cells import METHODS, MODELS
from geodiag.experiments.reproduction.frameworks import PACKAGES
from geodiag.plugins import registry
from geodiag.report import plotting, watch

COMPLETION = """{start}_geodiag() {{
  local here="${{COMP_WORDS[COMP_CWORD]}}" words='{names}'
  if [ "$COMP_CWORD" -gt 1 ]; then case "${{COMP_WORDS[1]}}" in
{cases}
    *) words='' ;;
  esac; fi
  if [ "$COMP_CWORD" -gt 1 ] && [ "${{here#-}}" = "$here" ]; then
    COMPREPLY=($(compgen -f -- "$here"))
  else
    COMPREPLY=($(compgen -W "$words" -- "$here"))
  fi
}}
complete -o filenames -F _geodiag geodiag"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's arguments). Returns the exit status."""
    _never_fail_to_print()
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    try:
        status = int(run(**arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the flush at exit must find no pipe)
        return 141
    except GeodiagError as e:
        print(f"geodiag: error: {printable(str(e))}", file=sys.stderr)
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
    norms.add_argument(
        "--json", action="store_true", dest="as_json", help="print JSON lines, not a table"
    )
    norms.set_defaults(run=_norms)

    show = commands.add_parser("demo", help="train on real digits and draw the edge of stability")
    show.add_argument(
        "--norm",
        action="append",
        dest="norms",
        metavar="NAME",
        help="l2, linf or spectral; may be repeated (default: all three)",
    )
    show.add_argument("--steps", type=int, help="training steps of each method")
    _add_training(show, "geodiag-demo", "where the figure and the records go")
    show.set_defaults(run=demo.run)
    _add_reproduce(commands)
    _add_measure(commands)

    draw = commands.add_parser("plot", help="draw the logs of one or more runs")
    draw.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="a .jsonl or .csv log")
    draw.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the figure: {', '.join(plotting.SUFFIXES)} (default: the first log's name, .png)",
    )
    draw.add_argument("--title", help="above the figure")
    draw.add_argument(
        "--label",
        action="append",
        dest="labels",
        metavar="TEXT",
        help="of a run, in place of its file's name; once for each run",
    )
    draw.add_argument("--style", help="paper, slides or dark")
    draw.add_argument("--size", type=_inches, metavar="WxH", help="in inches, such as 5.5x4")
    draw.add_argument("--font", help="a font family, or serif, sans-serif, monospace")
    draw.set_defaults(run=_plot)

    follow = commands.add_parser("watch", help="follow the logs of runs in the terminal")
    follow.add_argument("paths", nargs="+", type=Path, metavar="LOG", help="a .jsonl or .csv log")
    follow.add_argument("--lines", type=int, default=12, help="records to show, of all logs")
    follow.add_argument(
        "--interval", type=float, default=1.0, help="seconds between two readings of the log"
    )
    follow.add_argument("--once", action="store_true", help="show what is there, and stop")
    follow.set_defaults(run=watch.run)

    complete = commands.add_parser(
        "completion",
        help="print a script for shell completion",
        description="Print a script that completes commands and options: "
        'eval "$(geodiag completion bash)" in ~/.bashrc, or the same with zsh in ~/.zshrc.',
    )
    complete.add_argument("shell", choices=("bash", "zsh"))
    complete.set_defaults(run=partial(_completion, commands))
    return parser


def _add_measure(commands: Any) -> None:
    parser = commands.add_parser(
        "measure",
        help="measure checkpoints: a table, a log and a figure",
        description="Measure the sharpness at each checkpoint, in each norm.",
        epilog="FACTORY is called without arguments and returns (model, loss, data): of torch a "
        "module and criterion(model(x), y), of JAX the parameters and loss(params, *batch); or a "
        "dict of the arguments of geodiag.problem. No code in a checkpoint is run. With --log, "
        "what the log has already is not measured again. "
        "Example: geodiag measure train:probe ckpt-*.pt --norm l2 --norm spectral "
        "--log run.jsonl -o run.svg",
    )
    parser.add_argument("factory", metavar="FACTORY", help="package.module:function")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="torch: .pt, .pth, .bin, .ckpt, .safetensors, or a Hugging Face directory; JAX: "
        ".msgpack, .safetensors, or a directory of orbax",
    )
    parser.add_argument(
        "--norm",
        action="append",
        dest="norms",
        metavar="NAME",
        help="a registered norm; may be repeated (default: l2)",
    )
    parser.add_argument("--where", metavar="REGEX", help="measure only parameters of such names")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="a .jsonl or .csv log, appended to"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="a figure")
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="print JSON lines, not a table"
    )
    parser.add_argument("--certificate", action="store_true", help="also upper bounds on S")
    parser.add_argument(
        "--max-hvps", type=int, metavar="N", help="Hessian-vector products of one measurement"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random starts")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=measure.run)


def _add_reproduce(commands: Any) -> None:
    parser = commands.add_parser("reproduce", help="run the paper's experiments on small data")
    parser.add_argument("--quick", action="store_true", help="the MLP alone: a few minutes")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help=f"of {', '.join(METHODS)} (default: all)"
    )
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all)"
    )
    parser.add_argument(
        "--data",
        dest="data_folder",
        type=Path,
        metavar="DIR",
        help="CIFAR-10 in its binary layout (data_batch_1.bin, ...) instead of digits",
    )
    _add_training(parser, "geodiag-reproduction", "finished runs are kept here and not run again")
    parser.set_defaults(run=runner.run)


def _add_training(parser: Any, folder: str, what: str) -> None:
    """The options that the demo and the reproduction share."""
    parser.add_argument("--framework", choices=sorted(PACKAGES), default="torch")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(folder),
        metavar="DIR",
        help=f"{what} (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)


def _norms(as_json: bool = False) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        entries = registry.norms().values()
    for warning in caught:  # a plugin that did not load: without the source line that warned
        print(f"geodiag: warning: {printable(str(warning.message))}", file=sys.stderr)
    words = ((e.name, e.owner, e.summary) for e in entries)
    named = ([printable(" ".join(x.split())) for x in row] for row in words)
    if as_json:
        for row in named:
            print(json.dumps(dict(zip(("name", "owner", "summary"), row, strict=True))))
        return 0
    rows = [("NAME", "OWNER", "WHAT IT IS"), *named]
    name_width, owner_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, owner, summary in rows:
        print(f"{name:<{name_width}}  {owner:<{owner_width}}  {summary}".rstrip())
    return 0


def _inches(text: str) -> tuple[float, float]:
    try:
        width, height = (float(x) for x in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a size such as 5.5x4: {text!r}") from None
    return width, height


def _plot(logs: list[Path], out: Path | None, **look: Any) -> int:
    out = out or logs[0].with_suffix(".png")
    plotting.plot(logs, out, **look)
    print(plotting.written(out))
    return 0


def _completion(commands: Any, shell: str) -> int:
    """Print what a shell evaluates: commands after ``geodiag``, then options or files."""
    cases = []
    for name, parser in commands.choices.items():
        options = [o for action in parser._actions for o in action.option_strings if len(o) > 2]
        cases.append(f"    {name}) words='{' '.join(options)}' ;;")
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    print(COMPLETION.format(start=start, names=" ".join(commands.choices), cases="\n".join(cases)))
    return 0


def _never_fail_to_print() -> None:
    """Print a substitute for characters that the terminal cannot encode, such as ℓ or √."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
