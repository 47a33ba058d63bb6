"""The benchmark runs and says what it is asked to; no test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from bench import PIECE, Bench, main, reference

from model.ops.compute import Compute
from trainables.errors import DoesNotFitError

pytestmark = pytest.mark.slow


def test_benchmark_writes_every_unit(tmp_path: Path) -> None:
    script, report = Path(__file__).with_name("bench.py"), tmp_path / "bench.json"
    command = [sys.executable, str(script), "--device", "cpu", "--tokens", "6000", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert str(Compute.of("cpu")) in written["machine"]
    assert written["sizes"]["N"] == 6000
    units = {unit["unit"]: unit for unit in written["units"]}
    for word in ("sweep", "epoch", "contexts", "trial"):
        assert any(word in name for name in units), word
    for name, unit in units.items():
        if "extra" not in name:
            assert unit["fast_s"] > 0
            assert unit["ratio"] == pytest.approx(unit["textbook_s"] / unit["fast_s"])
        assert name in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--tokens", "5"], "--tokens must be at least 1000"),
        (["--threads", "1025"], "--threads: must be at most 1024"),
        (["--json", "nowhere/bench.json"], "nowhere/bench.json"),
        (["--json", "."], "Is a directory"),
        (["--tokens", str(10**18)], "fit a machine"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_timed(options: list[str], said: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("bench.py")), "--device", "cpu", *options]
    done = forked.run(command)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


FULL = "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 GiB is free."


@pytest.fixture
def of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the benchmark asks of a GPU, and no unit of any length: it measures no time."""
    monkeypatch.setattr(Bench, "_peak", lambda self: 1e12)


@pytest.mark.parametrize("unit", ["phase1", "phase2"])
def test_a_textbook_that_does_not_fit_takes_half_the_stream_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], of_a_gpu: None, unit: str
) -> None:
    whole, lengths = getattr(reference, unit), []

    def too_large(book: object, tokens: torch.Tensor, *rest: object, **options: object) -> object:
        lengths.append(len(tokens))
        if len(tokens) > 2_000:
            raise torch.OutOfMemoryError(FULL)
        return whole(book, tokens, *rest, **options)

    monkeypatch.setattr(reference, unit, too_large)
    bench = Bench("cpu", None, 6_000)
    (bench.sweep if unit == "phase1" else bench.epoch)(1)
    (line,) = bench.units
    assert lengths[:3] == [6_000, 3_000, 1_500]
    assert set(lengths[2:]) == {1_500}
    assert line.note == "textbook scaled from 1,500 tokens"
    assert line.note in capsys.readouterr().out
    assert line.textbook_s is not None
    assert line.ratio == pytest.approx(line.textbook_s / line.fast_s)


def test_a_textbook_that_fits_once_and_not_again_takes_half_too(
    monkeypatch: pytest.MonkeyPatch, of_a_gpu: None
) -> None:
    """What the fast path's recording takes comes between."""
    whole, lengths = reference.phase1, []

    def later(book: object, tokens: torch.Tensor, *rest: object, **options: object) -> object:
        lengths.append(len(tokens))
        if len(tokens) == 6_000 and lengths.count(6_000) == 2:
            raise torch.OutOfMemoryError(FULL)
        return whole(book, tokens, *rest, **options)

    monkeypatch.setattr(reference, "phase1", later)
    bench = Bench("cpu", None, 6_000)
    bench.sweep(1)
    assert lengths[:3] == [6_000, 6_000, 3_000]
    assert bench.units[0].note == "textbook scaled from 3,000 tokens"


def test_a_stream_too_long_for_the_fast_path_is_one_sentence(monkeypatch: pytest.MonkeyPatch, of_a_gpu: None) -> None:
    def too_large(self: Bench, layers: int) -> None:
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(Bench, "sweep", too_large)
    monkeypatch.setenv("TRITON_CACHE_DIR", "unused")  # which it would set
    monkeypatch.setattr("sys.argv", ["bench.py", "--device", "cpu", "--tokens", "6000", "--fast-only"])
    with pytest.raises(SystemExit, match="error: 6,000 tokens are too many for this GPU: CUDA out of memory"):
        main()


def test_other_errors_of_the_textbook_are_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch, of_a_gpu: None) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(reference, "phase1", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Bench("cpu", None, 6_000).sweep(1)


def test_without_the_textbook_nothing_of_the_streams_length_is_made_in_fp32(
    monkeypatch: pytest.MonkeyPatch, of_a_gpu: None
) -> None:
    """Such a tensor is twice as large as all that a trial on a GPU keeps."""
    made, draw = [], torch.randn

    def counted(*shape: object, **options: object) -> torch.Tensor:
        found: torch.Tensor = draw(*shape, **options)  # type: ignore[call-overload]
        made.append(len(found))
        return found

    bench = Bench("cpu", None, PIECE + 5_000, fast_only=True)
    monkeypatch.setattr(bench, "clock", lambda work, repeats: 1.0)
    monkeypatch.setattr(torch, "randn", counted)
    bench.sweep(1)
    bench.epoch(1)
    assert max(made) == PIECE
    assert bench.operands(PIECE + 5_000)[-1].any()


def test_a_trial_that_does_not_fit_is_said_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], of_a_gpu: None
) -> None:
    def too_large(*arguments: object) -> None:
        raise DoesNotFitError("infeasible: does not fit the GPU's memory")

    monkeypatch.setattr("bench.run", too_large)
    assert Bench("cpu", None, 6_000).trial("t") is None
    assert "whole C2T2 trial: infeasible: does not fit the GPU's memory" in capsys.readouterr().out
