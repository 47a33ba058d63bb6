"""A GPU's memory that is too small: a second attempt with half the chunks, then an outcome of its own."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import tune
from small import run_config

from model.ops.chunks import Chunks
from model.ops.compute import Compute
from model.ops.head import FrozenHead
from trainables import metrics as names
from trainables import pipeline as pipeline_module
from trainables import two_phase as two_phase_module
from trainables.cache import ArtifactStore
from trainables.config import RunConfig
from trainables.errors import DoesNotFitError
from trainables.host.digests import own_code
from trainables.phases import shared_phase1 as shared_phase1_module
from trainables.pipeline import Inputs, run
from trainables.reports import Failed, Finished, Report, report_of
from trainables.two_phase import Task, two_phase

TOO_SMALL = (  # as PyTorch's allocator says it, on one line
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22.03 GiB of which 381 MiB is free. "
    "Process 1753 has 16.07 GiB memory in use. Including non-PyTorch memory, this process has 3.35 GiB memory in use. "
    "If reserved but unallocated memory is large try setting an option to avoid fragmentation.\nmore about it"
)
PARTS = ("fit_phase1", "fit_phase2")
OWN = {names.PHASE1_SECONDS, names.PHASE2_SECONDS, names.TOTAL_SECONDS, names.ATTEMPTS}


def figures(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in OWN}


def fill_memory(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> list[Chunks]:
    """Have a part of a run do all its work and then find no memory, `times` times; the chunks of each call.

    Whatever an attempt made must be gone when the next one begins.
    """
    module = {"fit_phase1": shared_phase1_module, "fit_phase2": pipeline_module}[name]
    part: Callable[..., Any] = getattr(module, name)
    seen: list[Chunks] = []
    models: list[weakref.ref[torch.nn.Module]] = []

    def tight(model: torch.nn.Module, *args: Any) -> Any:
        assert all(earlier() is None for earlier in models)
        models.append(weakref.ref(model))
        seen.append(next(value for value in args if isinstance(value, Compute)).chunks)
        result = part(model, *args)
        if len(seen) <= times:
            raise torch.OutOfMemoryError(TOO_SMALL)
        return result

    monkeypatch.setattr(module, name, tight)
    return seen


def reports(monkeypatch: pytest.MonkeyPatch, config: RunConfig, inputs: Inputs, cache: Path) -> list[Report]:
    """What a trial in this process reports."""
    sent: list[Any] = []
    monkeypatch.setattr(tune, "report", lambda result: sent.append(report_of(result)))
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    code = (own_code(), "here")
    task = Task(config).as_config()
    two_phase(task, inputs=[inputs], cache=str(cache), threads=1, gpus=0, code=code)  # type: ignore[list-item]
    return sent


def points(sent: list[Report]) -> list[tuple[str, int]]:
    return sorted((point.name, point.step) for report in sent for point in report.points)


def metrics(sent: list[Report]) -> dict[str, float]:
    """Those of a trial that finished."""
    assert isinstance(sent[-1].end, Finished)
    return sent[-1].end.metrics


def test_half_the_chunks_halve_everything_and_change_no_name() -> None:
    for device in ("cpu", "cuda"):
        whole = Chunks.of(device)
        assert [2 * size for size in vars(whole.halved()).values()] == list(vars(whole).values())
    assert str(Compute(chunks=Chunks().halved())) == str(Compute())


def test_results_do_not_depend_on_the_chunks(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Compute.of("cpu")
    found = []
    for number, chunks in enumerate((Chunks(), Chunks(1 << 14, 600, 1 << 14, 100))):
        monkeypatch.setattr(pipeline_module.Compute, "of", lambda device, c=chunks: replace(whole, chunks=c))
        found.append(run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path / str(number))))
    # a residual is a difference of near equals: as exact as the states
    assert figures(found[1].metrics) == pytest.approx(figures(found[0].metrics), rel=1e-3, abs=1e-6)
    assert found[1].metrics[names.SWEEPS] == found[0].metrics[names.SWEEPS]


def test_a_phase1_is_found_whatever_the_chunks(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path))
    other = replace(Compute.of("cpu"), chunks=Chunks().halved())
    monkeypatch.setattr(pipeline_module.Compute, "of", lambda device: other)
    assert run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path)).metrics[names.PHASE1_SHARED] == 1


@pytest.mark.parametrize("part", PARTS)
def test_a_second_attempt_gives_the_same_figures_and_reports_each_point_once(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(two_phase_module, "REPORT_EVERY", 0.0)
    config = run_config(chat_file)
    expected = reports(monkeypatch, config, chat_inputs, tmp_path / "whole")
    seen = fill_memory(monkeypatch, part, times=1)
    found = reports(monkeypatch, config, chat_inputs, tmp_path / "halved")
    assert seen == [Chunks(), Chunks().halved()]
    assert figures(metrics(found)) == pytest.approx(figures(metrics(expected)), rel=1e-3)
    assert points(found) == points(expected)
    assert [metrics(sent)[names.ATTEMPTS] for sent in (expected, found)] == [1, 2]


@contextmanager
def recording() -> Iterator[None]:
    """As a CUDA graph's: what is raised inside spoils it, which its end says in an error of its own."""
    try:
        yield
    finally:
        raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("error", "around"),
    [
        (torch.OutOfMemoryError(TOO_SMALL), nullcontext),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"), nullcontext),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), nullcontext),
        (RuntimeError("Triton Error [CUDA]: out of memory"), nullcontext),
        (torch.OutOfMemoryError(TOO_SMALL), recording),
    ],
)
def test_memory_that_runs_out_in_the_middle_of_an_epoch_is_known_by_all_its_errors(
    chat_file: Path,
    chat_inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    around: Callable[[], AbstractContextManager[None]],
) -> None:
    gradient, calls = FrozenHead.gradient, 0

    def tight(head: FrozenHead, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            with around():
                raise error
        return gradient(head, *args)

    monkeypatch.setattr(FrozenHead, "gradient", tight)
    assert run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path)).metrics[names.ATTEMPTS] == 2


def test_other_errors_are_no_lack_of_memory(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(head: FrozenHead, *args: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(FrozenHead, "gradient", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path))


@pytest.mark.parametrize("part", PARTS)
def test_what_does_not_fit_twice_is_infeasible_and_the_worker_goes_on(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    config, store = run_config(chat_file), ArtifactStore(tmp_path)
    fill_memory(monkeypatch, part, times=4)
    said = (
        "infeasible: does not fit the GPU's memory, nor with half the chunks: "
        "CUDA out of memory. Tried to allocate 2.00 GiB. "
        "GPU 0 has a total capacity of 22.03 GiB of which 381 MiB is free."
    )
    with pytest.raises(DoesNotFitError) as ended:
        run(config, chat_inputs, store)
    assert str(ended.value) == said
    *_, last = reports(monkeypatch, config, chat_inputs, tmp_path)
    assert last.end == Failed(said)
    assert run(config, chat_inputs, store).metrics[names.VAL_PPL] > 1
