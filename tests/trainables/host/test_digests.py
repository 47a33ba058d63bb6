"""The digest of the code behind a result: what changes it, and what it is a part of."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from costless import base_config

import trainables.phases.shared_phase1
from model.language_model import LanguageModel
from model.ops.chunks import Chunks
from model.ops.compute import Compute
from trainables.cache import ArtifactStore, content_key
from trainables.config import RunConfig
from trainables.errors import OtherCodeError
from trainables.host.digests import (
    PACKAGES,
    PHASE1,
    ROOT,
    TABLE,
    TOKENS,
    TRIAL,
    Provenance,
    code_digest,
    device_model,
    modules,
    own_code,
)
from trainables.phases.shared_phase1 import SharedPhase1
from trainables.two_phase import check_code, prepare_study, repeat, two_phase


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The three packages, to be edited."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edited(root: Path, file: str, before: str, after: str) -> dict[str, bool]:
    """Which kinds' digests an edit changes."""
    kinds = (TOKENS, TABLE, PHASE1, TRIAL)
    code_digest.cache_clear()
    old = [code_digest(kind, root) for kind in kinds]
    text = (root / file).read_text()
    assert before in text
    (root / file).write_text(text.replace(before, after))
    code_digest.cache_clear()
    return {kind: code_digest(kind, root) != was for kind, was in zip(kinds, old, strict=True)}


NONE = dict.fromkeys((TOKENS, TABLE, PHASE1, TRIAL), False)


def test_a_comment_a_docstring_and_a_plot_change_nothing(copy: Path) -> None:
    assert edited(copy, "trainables/phases/phase1.py", '"""Phase 1: fit', '# new\n"""Phase one: fit') == NONE
    assert edited(copy, "model/ops/native.c", "/*", "/* more") == NONE
    assert edited(copy, "search/findings/plots.py", "import", "import os\nimport") == NONE


def test_an_edit_to_a_phase_changes_the_results_it_is_part_of(copy: Path) -> None:
    assert edited(copy, "trainables/phases/phase1.py", "STATE_STD = 0.01", "STATE_STD = 0.02") == NONE | {
        PHASE1: True, TRIAL: True
    }  # fmt: skip
    assert edited(copy, "trainables/phases/phase2.py", "import math", "import math as math") == NONE | {TRIAL: True}


def test_what_sets_a_trial_up_is_part_of_it_and_a_packages_own_file_too(copy: Path) -> None:
    changed = edited(copy, "trainables/two_phase.py", "torch.set_num_threads(threads)", "torch.set_num_threads(1)")
    assert changed == NONE | {TRIAL: True}
    everything = dict.fromkeys(NONE, True)
    assert edited(copy, "model/__init__.py", "__all__ =", "import sys\n__all__ =") == everything


def test_a_new_context_mode_is_no_other_code_of_what_there_is(copy: Path) -> None:
    """What a mode means to a model is in the hash of its configuration."""
    assert edited(copy, "model/modes.py", "_READS: ", "_MORE = 1\n_READS: ") == NONE
    assert "model.modes" in modules(TRIAL)
    assert own_code() != code_digest(TRIAL)  # all hosts of a study have the same modes nevertheless


def test_each_module_that_a_trial_loads_is_part_of_its_digest() -> None:
    program = (
        "import sys, trainables.two_phase, trainables.pipeline, trainables.phases.phase1, trainables.phases.traces\n"
        "import trainables.host.devices, model.ops.compute\n"
        "print(*[name for name in sys.modules if name.partition('.')[0] in ('model', 'trainables', 'search')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) <= set(modules(TRIAL))
    assert not any(name.startswith("search") for name in modules(TRIAL))


def test_what_a_library_computes_by_is_part_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    before = device_model("cpu")
    assert torch.backends.cpu.get_cpu_capability() in before
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert device_model("cpu") == f"{before} MKL_CBWR=COMPATIBLE"


@pytest.mark.parametrize("file", ["model/ops/native.c", "model/ops/triton_kernels.py", "model/losses.py"])
def test_kernels_and_c_operators_are_part_of_both_phases(copy: Path, file: str) -> None:
    more = "\nint one_more;\n" if file.endswith(".c") else "\nONE_MORE = 1\n"
    assert edited(copy, file, (copy / file).read_text(), (copy / file).read_text() + more) == NONE | {
        PHASE1: True, TRIAL: True
    }  # fmt: skip


def test_what_is_imported_for_type_checkers_alone_does_not_run() -> None:
    assert "model.generate" not in modules(TRIAL)
    assert not [name for name in modules(TRIAL) if name.startswith("search")]
    assert {"model.ops.native", "model.ops.fused", "trainables.phases.phase2", "trainables.inputs.corpus"} <= set(
        modules(TRIAL)
    )


def test_relative_imports_are_followed(copy: Path) -> None:
    folder = copy / "trainables" / "phases"
    (folder / "one_more.py").write_text("from ..deeper import package_own\n")
    (folder / "two_more.py").write_text("HERE = 1\n")
    (copy / "trainables" / "deeper").mkdir()
    (copy / "trainables" / "deeper" / "__init__.py").write_text("from .inside import package_own\n")
    (copy / "trainables" / "deeper" / "inside.py").write_text("package_own = 1\n")
    text = (folder / "phase2.py").read_text()
    (folder / "phase2.py").write_text(f"{text}\nfrom . import one_more\nfrom .two_more import HERE\n")
    new = {"trainables.phases.one_more", "trainables.phases.two_more", "trainables.deeper", "trainables.deeper.inside"}
    assert set(modules(TRIAL, copy)) - set(modules(TRIAL)) == new


OTHER: Any = ("0" * 16, "/there")  # the driver's code, and where it lies
NONE_AT_ALL: Any = None


@pytest.mark.parametrize(
    "call",
    [
        lambda: two_phase({}, inputs=[], cache="", threads=1, gpus=0, code=OTHER),
        lambda: repeat(NONE_AT_ALL, NONE_AT_ALL, 1, 0, OTHER),
        lambda: prepare_study(NONE_AT_ALL, NONE_AT_ALL, NONE_AT_ALL, "", 1, 0, OTHER),
    ],
    ids=["two_phase", "repeat", "prepare_study"],
)
def test_a_worker_with_other_code_than_the_drivers_does_nothing(call: Callable[[], object]) -> None:
    with pytest.raises(OtherCodeError) as refused:
        call()
    assert str(ROOT) in str(refused.value)
    assert "/there" in str(refused.value)


def test_a_worker_with_the_drivers_code_works_wherever_it_lies() -> None:
    check_code(own_code(), "/there")


def test_a_provenance_is_its_code_torch_device_and_kernels() -> None:
    one = Provenance(code="c", torch="2.11.0", device="cpu", compute="fp32")
    others = (
        Provenance(code="d", torch="2.11.0", device="cpu", compute="fp32"),
        Provenance(code="c", torch="2.12.0", device="cpu", compute="fp32"),
        Provenance(code="c", torch="2.11.0", device="gpu", compute="fp32"),
        Provenance(code="c", torch="2.11.0", device="cpu", compute="bf16"),
        Provenance(code="c", torch="2.11.0", device="cpu", compute="fp32", threads=1),
        Provenance(code="c", torch="2.11.0", device="cpu", compute="fp32", threads=2),
    )
    assert len({one.digest, *(other.digest for other in others)}) == 7


def test_without_threads_a_digest_is_that_of_before_they_were_recorded() -> None:
    before = {"code": "c", "torch": "2.11.0", "device": "cpu", "compute": "fp32"}
    assert Provenance(**before).digest == content_key(before)


def test_threads_are_a_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.host.digests.device_model", lambda _: "the same")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert [Provenance.of(device, "fp32").threads for device in ("cpu", "cuda")] == [3, 0]


Key = Callable[..., str]


@pytest.fixture
def phase1_key(tmp_path: Path) -> Key:
    """The key that a small Phase 1 is kept under, of streams on a device, computed in some way."""
    config: RunConfig = base_config(context_dim=8, phase1_max_sweeps=3, contexts_min_rank=0.0)
    table = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))

    def key(device: str = "cpu", compute: Compute | None = None, last: int = 3) -> str:
        # its place and its content are all that a key takes of a stream
        stream: Any = SimpleNamespace(device=torch.device(device), cpu=lambda: torch.tensor([1, 2, last]))
        model = LanguageModel(config.model_config(10, 4), table, 0)
        store, how = ArtifactStore(tmp_path), compute or Compute()
        return SharedPhase1(config, model, stream, stream, "d", store, lambda _: None, how, False).key

    return key


def test_phase_1_of_another_validation_stream_is_another(phase1_key: Key) -> None:
    assert phase1_key(last=3) == phase1_key(last=3) != phase1_key(last=4)


@pytest.mark.parametrize("name", ["code_digest", "device_model"])
def test_phase_1_is_found_again_by_the_same_code_and_device_only(
    phase1_key: Key, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = phase1_key()
    with monkeypatch.context() as changed:
        changed.setattr(trainables.phases.shared_phase1, name, lambda *_: "another")
        assert phase1_key() != before
    assert phase1_key() == before


def test_phase_1_is_found_again_by_the_same_torch_only(phase1_key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    before = phase1_key()
    monkeypatch.setattr(torch, "__version__", "0")
    assert phase1_key() != before


def test_phase_1_is_found_again_by_the_same_kernels_and_precision_only(phase1_key: Key) -> None:
    ways = (Compute(), Compute(native=True), Compute(fused=True), Compute(bf16=True), Compute(tf32=True))
    assert len({phase1_key(compute=way) for way in ways}) == len(ways)
    assert phase1_key(compute=Compute(chunks=Chunks(eval_rows=7))) == phase1_key()  # results are the same


def test_a_cpus_phase_1_is_of_its_threads_and_a_gpus_is_not(phase1_key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainables.phases.shared_phase1, "device_model", lambda _: "the same")
    found: dict[str, list[str]] = {"cpu": [], "cuda": []}
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for device, keys in found.items():
            keys.append(phase1_key(device))
    assert found["cpu"][0] != found["cpu"][1]
    assert found["cuda"][0] == found["cuda"][1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 0)  # what stands for them in a GPU's key
    assert phase1_key("cpu") != found["cuda"][0]
