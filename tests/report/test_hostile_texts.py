"""Texts from elsewhere reach no terminal, figure or spreadsheet as anything but text.

Notes carry the texts of exceptions; labels, file names and the names of plugins are anyone's.
"""

from __future__ import annotations

import os
import re
import threading
import types
from xml.etree import ElementTree

import pytest

import geodiag
from geodiag import cli
from geodiag.errors import ArgumentError, GeodiagError, first_line, one_line, printable, shown
from geodiag.norms import L2
from geodiag.plugins import Registry
from geodiag.records import Record, read_records, to_json
from geodiag.report import plotting
from geodiag.report.watch import Tail, run
from geodiag.sinks import CSV, JSONL
from tests.monitored import pair

CLEAR, CLIPBOARD, C1 = "\x1b[2J", "\x1b]52;c;aGk=\x07", "\x9b31m\x90"
EVIL = f"{CLEAR}{CLIPBOARD}{C1}\x08\r\x7f\u202e\u2066\udcff\ud800\ufffe"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe]")


def log(folder, record, name="run.jsonl"):
    path = folder / name
    path.write_text(to_json(record) + "\n")
    return path


class TestTexts:
    def test_printable_leaves_no_control_and_all_else(self):
        assert not CONTROLS.search(printable(EVIL))
        assert printable(CLEAR) == r"\x1b[2J"
        plain = "ℓ∞ ‖∇L‖* 日本\u3000語 naïve \U0001f469\u200d\U0001f4bb\ttab\nline"
        assert printable(plain) == plain

    def test_errors_say_what_they_met_without_its_codes(self):
        class Odd:
            def __repr__(self):
                return EVIL

        for text in (
            str(GeodiagError(EVIL, got=EVIL, do=EVIL)),
            one_line(ValueError(EVIL)),
            one_line(type(CLEAR, (Exception,), {})()),
            shown(Odd()),
        ):
            assert not CONTROLS.search(text)

    @pytest.mark.parametrize("say", [one_line, first_line])
    def test_an_exception_that_is_long_or_mute(self, say):
        class Mute(Exception):
            def __str__(self):
                raise ValueError

        assert len(say(ValueError("x" * 10**6))) < 1100
        assert say(Mute()) == "Mute"


class TestNotes:
    def test_a_note_is_clean_and_bounded(self, tmp_path):
        """Whatever an exception says, in each half of a measurement."""

        def bad(w):
            raise ValueError(EVIL + "x" * 10**6 + str(next(count)))  # another text each time

        count = iter(range(100))
        path = tmp_path / "run.jsonl"
        monitor, w = pair(first=bad, second=bad, log=path)
        record = monitor.observe(0, w, {"x": 0.9 * w["x"]})
        monitor.close()
        assert 100 < len(record.note) <= 4001
        assert not CONTROLS.search(record.note)
        assert path.stat().st_size < 30_000
        assert read_records(path)[0].note == record.note

    def test_notes_of_quantities_and_sinks(self):
        def fails(record):
            raise ValueError(EVIL + "x" * 10**6)

        monitor, w = pair(log=fails)
        with pytest.warns(RuntimeWarning, match="ValueError") as caught:
            monitor.observe(0, w, {"x": 0.9 * w["x"]})
        assert not CONTROLS.search(str(caught[0].message))
        assert len(str(caught[0].message)) < 1500


class TestTerminal:
    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "250")

    def clean(self, capsys):
        """What was printed, line ends apart; colours are off where the output is no terminal."""
        printed = capsys.readouterr()
        assert not CONTROLS.search(printed.out + printed.err)
        return printed

    @pytest.mark.parametrize("name", ["run.jsonl", "\x1b[2J[red]\x9b.jsonl"])
    def test_watch(self, name, tmp_path, capsys):
        pytest.importorskip("rich")
        run(log(tmp_path, Record(1, sharpness=2.0, note=EVIL), name), once=True)
        out = self.clean(capsys).out
        assert r"\x1b[2J" in out
        assert "[red]" in out or name == "run.jsonl"

    def test_watch_of_a_plugins_column(self, tmp_path, capsys, monkeypatch):
        pytest.importorskip("rich")
        quantity = geodiag.records.Quantity("odd", column=f"{CLEAR}[red]odd")
        monkeypatch.setattr("geodiag.records.parts.quantities", lambda: {"odd": quantity})
        run(log(tmp_path, Record(1, extras={"odd": 2.0})), once=True)
        assert "[red]odd" in self.clean(capsys).out

    def test_norms(self, capsys, monkeypatch):
        class Broken:
            name, value, dist = CLEAR, C1, types.SimpleNamespace(name=CLIPBOARD)

            def load(self):
                raise ImportError(EVIL)

        def factory():
            return L2()

        factory.__doc__ = f"What it is {CLEAR}"
        registry, plugin = Registry(lambda: [Broken()]), types.ModuleType(C1)
        plugin.geodiag_norms = geodiag.hookimpl(lambda: {f"mine{CLEAR}\nforged": factory})
        registry.register(plugin)
        monkeypatch.setattr(cli, "registry", registry)
        assert cli.main(["norms"]) == 0
        printed = self.clean(capsys)
        assert "geodiag: warning: the geodiag plugin" in printed.err
        assert len(printed.out.splitlines()) == 2

    @pytest.mark.parametrize("command", ["plot", "watch"])
    def test_messages(self, command, tmp_path, capsys):
        missing = tmp_path / "\x1b[2J\x9b.jsonl"
        arguments = [command, str(missing), *(["--once"] if command == "watch" else [])]
        assert cli.main(arguments) == 2
        assert r"\x1b[2J\x9b" in self.clean(capsys).err.replace("\\\\", "\\")

    def test_plot(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        assert cli.main(["plot", str(log(tmp_path, Record(1, loss=2.0), f"{CLEAR}.jsonl"))]) == 0
        assert r"\x1b[2J.png" in self.clean(capsys).out

    def test_the_warning_of_a_line_left_out(self, tmp_path):
        path = log(tmp_path, Record(1), f"{CLEAR}.jsonl")
        path.write_text(path.read_text() + f'{{"step": "{C1}"}}\n')
        with pytest.warns(RuntimeWarning, match="left out") as caught:
            read_records(path)
        assert not CONTROLS.search(str(caught[0].message))


class TestFigures:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    @pytest.mark.parametrize("suffix", plotting.SUFFIXES)
    @pytest.mark.parametrize("text", [EVIL, "$x^{$ --> ]]>", "$$\\undefined$"], ids=ascii)
    def test_any_label_and_note_can_be_drawn(self, text, suffix, tmp_path):
        path = tmp_path / f"out{suffix}"
        records = [Record(1, note=text), Record(2, note=text)]
        geodiag.plot({text: records, "other": records}, path)
        geodiag.plot({text: records}, path)
        if suffix in (".svg", ".html"):
            content = path.read_text("utf-8")
            ElementTree.fromstring(content[content.index("<svg") : content.rindex("</svg>") + 6])
            assert not CONTROLS.search(content)

    def test_dollars_are_drawn_as_they_are(self):
        (title,) = geodiag.plot({"costs $5, not $6": [Record(1, loss=1.0)]}).findobj(
            lambda each: getattr(each, "get_text", str)() == r"costs \$5, not \$6"
        )
        assert title.get_fontsize() > 10

    def test_a_long_note_and_label_are_cut(self, tmp_path):
        """To draw them whole takes minutes."""
        text = "word " * 200_000
        figure = geodiag.plot({text: [Record(1, note=text)]}, tmp_path / "out.svg")
        assert (tmp_path / "out.svg").stat().st_size < 10**6
        drawn = [
            each.get_text() for each in figure.findobj(pytest.importorskip("matplotlib.text").Text)
        ]
        assert 100 < max(map(len, drawn)) < 300

    def test_a_file_whose_name_is_no_text(self, tmp_path):
        path = os.fsencode(tmp_path) + b"/\xff.jsonl"
        with open(path, "w") as file:
            file.write(to_json(Record(1, loss=2.0)) + "\n")
        geodiag.plot(os.fsdecode(path), tmp_path / "out.svg")


TEXTS = ("=1+1", "+1", "-1", "@SUM(A1)", "'=1", "''=1", "'quoted'", "＝1", "\x00=1", "\ufeff=1")


FORMULA = ("=", "+", "-", "@", "＝")  # what makes a spreadsheet compute a cell


class TestLogs:
    @pytest.mark.parametrize("text", TEXTS, ids=ascii)
    def test_no_cell_is_a_formula_and_each_reads_back(self, text, tmp_path):
        path = tmp_path / "run.csv"
        sink = CSV(path)
        sink.write(Record(1, sharpness=-5.0, note=text, extras={"phase": text}))
        sink.close()
        (record,) = read_records(path)
        assert (record.note, record.sharpness) == (text, -5.0)
        assert record.phase == (text if text not in ("+1", "-1") else float(text))
        row = path.read_text("utf-8").splitlines()[1].split(",")
        assert not [x for x in row if x != "-5.0" and x.lstrip("\x00\ufeff").startswith(FORMULA)]

    @pytest.mark.parametrize("kind", [JSONL, CSV])
    def test_a_lone_surrogate_loses_no_record(self, kind, tmp_path):
        path = tmp_path / f"run.{kind.__name__.lower()}"
        sink = kind(path)
        note = "a file named \udcff, \ud800"
        sink.write(Record(1, note=note, extras={"phase": "\ud83d"}))
        sink.close()
        path.read_text("utf-8")  # no other reader fails
        (record,) = read_records(path)
        kept = note if kind is JSONL else r"a file named \udcff, \ud800"
        assert record.note == kept
        assert record.phase == ("\ud83d" if kind is JSONL else r"\ud83d")

    def test_a_line_of_json_holds_no_codes(self):
        line = to_json(Record(1, note=EVIL))
        assert not re.search("[\x00-\x1f\x7f-\x9f]", line)
        assert geodiag.records.from_json(line).note == EVIL


class TestWhatIsNoFile:
    @pytest.fixture
    def pipe(self, tmp_path):
        path = tmp_path / "run.jsonl"
        os.mkfifo(path)
        return path

    @pytest.mark.parametrize("read", [read_records, lambda p: Tail(p).update(), geodiag.plot])
    @pytest.mark.parametrize("special", ["pipe", "/dev/zero", "/dev/tty"])
    def test_is_refused_at_once(self, read, special, pipe):
        answers = []

        def refused():
            with pytest.raises(ArgumentError, match="not a file"):
                read(type(pipe)(pipe if special == "pipe" else special))
            answers.append(True)

        thread = threading.Thread(target=refused, daemon=True)  # reading it would never end
        thread.start()
        thread.join(60)
        assert answers

    def test_a_log_to_a_pipe_is_refused(self, pipe):
        with pytest.raises(ArgumentError, match="cannot be opened"):
            JSONL(pipe)


def test_the_monitor_says_nothing_raw_where_warnings_are_errors(capsys):
    def fails(record):
        raise ValueError(EVIL)

    monitor, w = pair(log=fails)
    monitor.observe(0, w, {"x": 0.9 * w["x"]})  # the suite runs with warnings as errors
    printed = capsys.readouterr().err
    assert "ValueError" in printed
    assert not CONTROLS.search(printed)
