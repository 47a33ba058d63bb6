"""Paths that are no UTF-8 to Python, which MLflow, Ray and databases cannot be told: one sentence, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from studies import ROOT

LATIN = "café".encode("latin-1")
COMMANDS = {
    "a study's records": ("search/asym_layers.py", "--mlruns", "PATH"),
    "its data": ("search/asym_layers.py", "--data", "PATH.jsonl", "--mlruns", "mlruns"),
    "its embedding": ("search/asym_layers.py", "--embedding", "PATH", "--mlruns", "mlruns"),
    "a study that goes on": ("search/asym_layers.py", "--resume", "small", "--mlruns", "PATH"),
    "report": ("search/report.py", "small", "--mlruns", "PATH"),
    "doctor": ("search/doctor.py", "--mlruns", "PATH"),
    "ui": ("search/ui.py", "--mlruns", "PATH"),
    "training": ("trainables/train.py", "--from-study", "small", "--mlruns", "PATH"),
    "a model's folder": ("trainables/train.py", "--from-study", "small", "--mlruns", "mlruns", "--out", "PATH"),
}


def refused(folder: Path, script: str, *options: str, name: bytes, **environment: str) -> str:
    (folder / os.fsdecode(name)).mkdir()
    (folder / (os.fsdecode(name) + ".jsonl")).write_text('{"text": "some words"}\n' * 120)
    (folder / os.fsdecode(name) / "config.json").write_text("{}")
    (folder / os.fsdecode(name) / "tokenizer.json").write_text("{}")
    (folder / os.fsdecode(name) / "model.safetensors").write_text("")
    (folder / "mlruns").mkdir()
    before = sorted(folder.rglob("*"))
    line = [sys.executable, str(ROOT / script), *(os.fsencode(each).replace(b"PATH", name) for each in options)]
    done = subprocess.run(
        line, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert sorted(folder.rglob("*")) == before
    return done.stderr


@pytest.mark.parametrize("case", COMMANDS)
def test_bytes_that_are_no_utf8(tmp_path: Path, case: str) -> None:
    script, *options = COMMANDS[case]
    said = refused(tmp_path, script, *options, name=LATIN)
    assert "is no name in UTF-8 to Python here: rename it\n" in said


def test_utf8_where_python_was_told_of_another_encoding(tmp_path: Path) -> None:
    script, *options = COMMANDS["a study's records"]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = refused(tmp_path, script, *options, name="café".encode(), **ascii_only)
    assert "is no name in UTF-8 to Python here: set PYTHONUTF8=1, or rename it\n" in said
