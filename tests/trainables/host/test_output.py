"""Whatever becomes of the terminal, pipe or file that a command prints to, its results are whole."""

import io
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest
from costless import base_config
from entries import COMMANDS
from rich.table import Table
from studies import ROOT, command, optuna_trials

from model.output import ERRORS, _Unfailing
from search.findings.leaderboard import BEST, CSV, HTML, MARKDOWN
from search.screen import Display
from trainables.host.console import open_console
from trainables.records import write_whole


def run(line: list[str], redirected: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command whose output is redirected as a shell does it."""
    shell = f"exec {shlex.join(line)} {redirected}"
    return subprocess.run(["sh", "-c", shell], capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("entry", COMMANDS)
def test_help_is_printed_in_any_encoding(entry: str) -> None:
    done = run([sys.executable, str(ROOT / entry), "--help"], PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"--" in done.stdout


@pytest.mark.slow
def test_no_output_can_end_or_change_a_study(chat_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "[exp] [/red] é"
    folder = root / "studies" / "small"

    def continued(trials: int, redirected: str, **environment: str) -> bytes:
        line = command("search/asym_layers.py", chat_file, root, "--epochs", "1", "--trials", str(trials))
        done = run([*line, "--max-concurrent", "1"], redirected, **environment)
        assert done.returncode == 0, done.stderr
        assert len(optuna_trials(root)) >= trials
        assert (folder / CSV).read_text().count("\n") >= trials
        for name in (BEST, HTML, MARKDOWN):
            (folder / name).rename(folder / f"seen.{name}")  # the next run makes it anew
        return done.stdout

    printed = continued(4, "", PYTHONIOENCODING="latin-1", COLUMNS="40").decode("latin-1")
    assert "[exp] [/red] é/" in printed
    assert "..." not in printed.partition("best first")[2].partition("claims")[0]  # no figure is cut
    continued(5, ">&- 2>&-")
    continued(6, ">/dev/full 2>/dev/full")
    assert (folder / f"seen.{HTML}").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_stream_that_fails_is_given_up_and_its_buffer_with_it(tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        stream = _Unfailing(full)
        assert stream.write("x" * 100_000) == 100_000
        stream.flush()
        stream.write("more")
        stream.flush()
    closed = io.StringIO()
    closed.close()
    gone = _Unfailing(closed)
    assert gone.write("x") == 1
    assert gone.write("y") == 1  # to where nothing fails
    gone.flush()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_an_encoding_lacks_are_shown_by_others(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, errors=ERRORS)
    stream.write("a … b ≤ \U0001f600 \udce9")
    stream.flush()
    assert raw.getvalue() == rb"a ... b <= \U0001f600 \udce9"


def test_nothing_is_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = r"[exp] [/y] [bold]x[/bold] :smile: \[z] \\"
    console = open_console()
    console.print(names)
    display = Display(console, 2, 0, None)
    for end in (display.fail, display.prune):
        display.start(0, names, base_config())
        end(0, names)
    display.on_restart(names)
    table = Table(title=names)
    table.add_column(names)
    table.add_row(names)
    console.print(table)
    with console.status(names):
        pass
    assert capsys.readouterr().out.count(names) == 1 + 2 + 2 * 2 + 1 + 3


def test_a_table_is_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = open_console()
    monkeypatch.setattr(console, "_width", 40)
    table = Table(box=None)
    for column in range(12):
        table.add_column(f"column {column}", no_wrap=True)
    table.add_row(*(f"{column}.12345678" for column in range(12)))
    console.print(table)
    printed = capsys.readouterr().out
    assert all(f"{column}.12345678" in printed for column in range(12))


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    file, contents = tmp_path / "report.html", [letter * 200_000 for letter in "ab"]
    write_whole(file, contents[0])
    failed: list[BaseException] = []

    def write(content: str) -> None:
        try:
            for _ in range(30):
                write_whole(file, content)
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(file.read_text())
    assert not failed
    assert seen <= set(contents)
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_file_that_cannot_be_written_leaves_the_one_before_and_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "best.json"
    write_whole(file, "before")

    def full(number: int | IO[bytes]) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "after")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["best.json"]
