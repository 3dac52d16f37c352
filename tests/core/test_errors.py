"""The text of errors: three parts, each one sentence, however its parts end."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodiag import errors
from geodiag.errors import GeodiagError, shown

SRC = Path(__file__).parents[2] / "src"
ERRORS = {n for n, e in vars(errors).items() if inspect.isclass(e) and issubclass(e, GeodiagError)}

words = st.text("ab .…!?", min_size=1).filter(lambda t: re.search("[ab]$", t.rstrip(" .…!?")))


@given(words, st.none() | words, st.none() | words)
def test_each_part_ends_in_one_mark(what, got, do):
    text = str(GeodiagError(what, got=got, do=do))
    ends = re.split(r" Got: | Do: ", text)
    assert len(ends) == 1 + (got is not None) + (do is not None)
    for part, said in zip(ends, [x for x in (what, got, do) if x is not None], strict=True):
        if said.rstrip().endswith(("!", "?", "…", "...")):
            assert part == said.rstrip()
        else:
            assert part == said.rstrip(" .") + "."


def test_an_error_within_an_error_does_not_double_the_full_stop():
    inner = GeodiagError("the loss is NaN", do="lower lr.")
    text = str(GeodiagError("rank 1 failed.", got=inner, do="see above. "))
    assert text == "rank 1 failed. Got: the loss is NaN. Do: lower lr. Do: see above."


@pytest.mark.parametrize("got", [0, 0.0, "", [], 2.0, False])
def test_what_is_falsy_is_shown(got):
    assert f"Got: {got}" in str(GeodiagError("unusable", got=got))


def test_a_value_without_a_repr_is_shown_by_its_type():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert shown(Broken()) == "an object of type Broken"
    assert len(shown("x" * 1000)) == errors.LONGEST + 1


def raised() -> Iterator[tuple[str, str, str]]:
    """(place, argument, literal text) of every place that builds an error."""
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ERRORS:
                continue
            place = f"{path.relative_to(SRC)}:{node.lineno}"
            parts = [("what", a) for a in node.args[:1]]
            parts += [(k.arg, k.value) for k in node.keywords if k.arg in ("what", "got", "do")]
            for argument, value in parts:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield place, argument, value.value
                elif isinstance(value, ast.JoinedStr):
                    pieces = [getattr(v, "value", None) for v in value.values]
                    text = "".join(p if isinstance(p, str) else "x" for p in pieces)
                    yield place, argument, text


SITES = list(raised())


def test_the_places_are_found():
    assert len(SITES) > 200
    assert {argument for _, argument, _ in SITES} == {"what", "got", "do"}


def unlike_a_part(argument: str, text: str) -> bool:
    """A mark at the end, which the error adds; a space too much; or a capitalised sentence."""
    spaces = text != text.strip() or re.search(r"  | \.(\s|$)", text)
    capital = argument != "got" and re.match(r"(The|An?|This|Pass|Use|It|No|Call|Check)\b", text)
    return bool(text.endswith(".") or spaces or capital)


def test_texts_read_as_parts_of_sentences():
    assert [site for site in SITES if unlike_a_part(*site[1:])] == []
    assert unlike_a_part("do", "pass it.")
    assert unlike_a_part("what", "Use it")
