"""trainables/train.py from a command line to a model folder, in this process or in one that is killed."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from small import run_config

from model.config import RUN
from model.text.checkpoint import load_model
from trainables import metrics as names
from trainables.cache import ArtifactStore
from trainables.config import RunConfig
from trainables.inputs.overlap import SEQUENCES
from trainables.phases.convergence import MARKED
from trainables.pipeline import Inputs, run
from trainables.records import Records
from trainables.tracking.model_runs import EXPERIMENT, KEY
from trainables.tracking.operations import FinishRun, LogPoints, read_journal
from trainables.tracking.places import FOLDER_TAG
from trainables.tracking.store import open_experiment
from trainables.tracking.tags import HASH_TAG, REASON_TAG
from trainables.tracking.writer import BackgroundWriter
from trainables.train import main
from trainables.training.model_folder import BEGUN, WORK, ModelFolder
from trainables.training.run import EPOCHS, JOURNAL, LEFT

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """`main` sets threads and a signal's handler for its whole process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's, made once: that takes seconds."""
    records = Records.at(tmp_path_factory.mktemp("mlruns"))
    open_experiment(records, EXPERIMENT, None, KEY)
    records.mlflow_database.replace(records.root / "empty.db")
    return records.root / "empty.db"


@pytest.fixture
def config_file(chat_file: Path, empty_database: Path, tmp_path: Path) -> Path:
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, Records.at(tmp_path / "mlruns").mlflow_database)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(run_config(chat_file).flat()))
    return path


def command(config_file: Path, *options: str) -> list[str]:
    root = config_file.parent / "mlruns"
    return [
        "train.py",
        "--config",
        str(config_file),
        "--mlruns",
        str(root),
        "--threads",
        "1",
        "--device",
        "cpu",
        *options,
    ]


def train(monkeypatch: pytest.MonkeyPatch, config_file: Path, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", command(config_file, *options))
    return main()


def model_folder(config_file: Path) -> Path:
    (folder,) = (config_file.parent / "mlruns" / "models").glob("[!.]*")
    return folder


def mlflow_runs(config_file: Path) -> tuple[list[Run], MlflowClient]:
    client = MlflowClient(Records.at(config_file.parent / "mlruns").tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id])), client


def test_a_training_is_the_pipelines_run_judged_saved_and_on_record(
    config_file: Path, chat_file: Path, chat_inputs: Inputs, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    expected = run(run_config(chat_file), chat_inputs, ArtifactStore(config_file.parent / "other"))
    assert train(monkeypatch, config_file) == 0
    folder = model_folder(config_file)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "run.json", "tokenizer.json"
    ]  # fmt: skip
    model = load_model(folder)
    ours, theirs = model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    record = json.loads((folder / RUN).read_text())
    assert RunConfig.from_flat(record["config"]) == run_config(chat_file)
    figures = record["metrics"]
    assert figures[names.VAL_PPL] == expected.metrics[names.VAL_PPL] == pytest.approx(figures["validation/ppl"])
    assert record["validation"]["nats"] == expected.val_documents.nats
    assert record["validation"]["targets"] == expected.val_documents.targets
    mean = math.fsum(record["test"]["nats"]) / sum(record["test"]["targets"])
    assert math.exp(mean) == pytest.approx(figures["test/ppl"])
    assert figures["test/ppl_low"] < figures["test/ppl"] < figures["test/ppl_high"]
    assert figures["test/bigram_ppl"] < figures["test/unigram_ppl"]
    assert figures["test/accuracy"] < figures["test/top5"]
    tokens = torch.tensor(chat_inputs.corpus.test.tokens, dtype=torch.int64)
    losses = torch.nn.functional.cross_entropy(model.logits(tokens)[:-1].double(), tokens[1:])
    assert math.exp(losses) == pytest.approx(figures["test/ppl"], rel=1e-4)
    assert (record["chat"], record["trial"]) == (True, None)
    assert len({oct(path.stat().st_mode) for path in folder.iterdir()}) == 1  # whoever may read one may read all

    ((found,), client) = mlflow_runs(config_file)
    assert found.info.status == "FINISHED"
    assert record["mlflow_run"] == found.info.run_id
    assert found.data.tags[HASH_TAG] == run_config(chat_file).config_hash()
    assert found.data.tags[FOLDER_TAG] == str(folder)
    assert {name: found.data.metrics[name] for name in figures} == pytest.approx(figures)
    epochs = client.get_metric_history(found.info.run_id, names.EPOCH_VAL_PPL)
    assert [point.step for point in epochs] == [1, 2]

    # its Phase 1 ends at its cap of 6 sweeps
    assert figures[names.CONVERGENCE] < run_config(chat_file).phase1.converged_share
    assert record["converged"] is False
    assert found.data.metrics[names.CONVERGED] == 0.0
    overlap = chat_inputs.corpus.overlap
    assert record["overlap"] == {"words": 12, **overlap}
    kept = {name: found.data.params[name] for name in ("val_overlap", "test_overlap")}
    assert kept == {"val_overlap": str(overlap["validation"]), "test_overlap": str(overlap["test"])}
    printed = capsys.readouterr().out
    assert f"% converged ({MARKED})" in printed
    assert f"{SEQUENCES}: validation {100 * overlap['validation']:.1f} %, test" in printed
    assert train(monkeypatch, config_file) == 0  # nothing is left to do
    printed = capsys.readouterr().out
    assert "trained already" in printed
    assert "Phase 1 did not converge: " in printed
    for word in ("top-5 accuracy", "bits per byte", "bigrams", "parameters", "python model/generate.py", "--chat"):
        assert word in printed
    assert f", {figures[names.PHASE1_SECONDS] + figures[names.PHASE2_SECONDS]:.1f} s in both phases" in printed
    assert len(mlflow_runs(config_file)[0]) == 1


def test_a_folder_of_another_run_is_replaced_only_where_that_is_said(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = config_file.parent / "out"
    assert train(monkeypatch, config_file, "--out", str(out)) == 0
    before = (out / RUN).read_text()
    assert train(monkeypatch, config_file, "--out", str(out), "--seed", "5") == 2
    assert (
        capsys.readouterr().err == f"error: {out} holds the model of another run: give another --out, or --overwrite\n"
    )
    assert (out / RUN).read_text() == before
    assert train(monkeypatch, config_file, "--out", str(out), "--seed", "5", "--overwrite") == 0
    assert json.loads((out / RUN).read_text())["config"]["seed"] == 5
    assert train(monkeypatch, config_file, "--out", "/proc/model") == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert "another process" not in refused
    (config_file.parent / "notes").mkdir()
    (config_file.parent / "notes" / "a.txt").write_text("mine")
    assert train(monkeypatch, config_file, "--out", str(config_file.parent / "notes"), "--overwrite") == 2
    assert "holds other files, no model" in capsys.readouterr().err


def test_a_folder_has_one_training_at_a_time(tmp_path: Path) -> None:
    first, second = (ModelFolder(tmp_path / "a" / "model", {"seed": seed}) for seed in (1, 2))
    for _ in range(2):
        with first.locked(), pytest.raises(ValueError, match="is being trained by another process"), second.locked():
            pass
        assert not first.path.exists()  # it stayed empty
    first.path.mkdir()
    with first.locked():
        pass
    assert first.path.is_dir()  # as it was before
    first.path.rmdir()
    lock = next((tmp_path / "a").iterdir())
    held = lock.stat().st_ino
    with second.locked():
        assert lock.stat().st_ino == held  # the very file that another may have opened


def test_a_divergence_is_a_sentence_and_leaves_no_folder(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, config_file, "--phase2-learning-rate", "1e30") == 1
    assert capsys.readouterr().err.startswith("error: Phase 2 diverged: loss nan")
    assert not list((config_file.parent / "mlruns" / "models").glob("[!.]*"))
    ((found,), _) = mlflow_runs(config_file)
    assert found.info.status == "FAILED"
    assert "diverged" in found.data.tags[REASON_TAG]


def as_left_before(work: Path, run_id: str) -> None:
    """What MLflow lacks of a training as an earlier version left it: in one file, figures among the points."""
    *logged, end = read_journal(work / JOURNAL)
    assert isinstance(end, FinishRun)
    curves = [point for each in logged if isinstance(each, LogPoints) for point in each.points]
    points = [
        (name, value, 0, step) for name, step, value in [*curves, *((name, 0, x) for name, x in end.figures.items())]
    ]
    (work / LEFT).write_text(json.dumps({"run": run_id, "points": points, "tags": end.place}))
    (work / JOURNAL).unlink()
    begun = json.loads((work / BEGUN).read_text())
    del begun["mlflow_run"]
    (work / BEGUN).write_text(json.dumps(begun))


@pytest.mark.parametrize("before", [False, True])
def test_an_mlflow_that_is_away_holds_nothing_up_and_is_told_later(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    whole = MlflowClient.log_batch
    monkeypatch.setattr(BackgroundWriter.close, "__defaults__", (0.5,))
    with monkeypatch.context() as away:

        def log_batch(self: MlflowClient, run_id: str, **given: object) -> None:
            if "params" not in given:  # it goes away once the run was made
                raise MlflowException("no answer", TEMPORARILY_UNAVAILABLE)
            whole(self, run_id, **given)

        away.setattr(MlflowClient, "log_batch", log_batch)
        assert train(monkeypatch, config_file) == 0
        assert capsys.readouterr().out.count("MLflow is away") == 2  # as it goes, and at the end
        assert train(monkeypatch, config_file) == 0  # still away: the model is as good
        said = capsys.readouterr().out
        assert "trained already" in said
        assert "MLflow is away and lacks the end of this run; the same command completes it" in " ".join(said.split())
    folder = model_folder(config_file)
    assert (folder / RUN).exists()
    assert mlflow_runs(config_file)[0][0].info.status == "RUNNING"
    if before:
        as_left_before(folder / WORK, mlflow_runs(config_file)[0][0].info.run_id)
    monkeypatch.setattr(sys, "argv", command(config_file))
    assert main() == 0
    ((found,), client) = mlflow_runs(config_file)
    assert found.info.status == "FINISHED"
    assert [len(client.get_metric_history(found.info.run_id, f"{split}/ppl")) for split in ("validation", "test")] == [
        1,
        1,
    ]
    assert [m.step for m in client.get_metric_history(found.info.run_id, names.EPOCH_VAL_PPL)] == [1, 2]
    assert not (folder / WORK).exists()


def test_a_run_of_a_model_that_was_saved_when_its_training_was_killed_is_completed(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainables.training.run._finish_run", killed)
        assert train(monkeypatch, config_file) == 130
    assert mlflow_runs(config_file)[0][0].info.status == "RUNNING"
    assert train(monkeypatch, config_file) == 0
    ((found,), client) = mlflow_runs(config_file)
    assert found.info.status == "FINISHED"
    record = json.loads((model_folder(config_file) / RUN).read_text())
    for name, value in record["metrics"].items():
        assert [m.value for m in client.get_metric_history(found.info.run_id, name)] == [value]
    assert not (model_folder(config_file) / WORK).exists()


def test_a_run_with_overwrite_that_was_interrupted_is_not_ended_with_the_figures_before_it(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert train(monkeypatch, config_file) == 0
    with monkeypatch.context() as interrupted:
        interrupted.setattr("trainables.training.run.score_splits", stop)
        assert train(monkeypatch, config_file, "--overwrite") == 130
    assert train(monkeypatch, config_file) == 0
    assert "trained already" in capsys.readouterr().out
    runs = {run.info.status: run for run in mlflow_runs(config_file)[0]}
    assert runs.keys() == {"FINISHED", "KILLED"}
    assert "test/ppl" not in runs["KILLED"].data.metrics


def test_a_model_that_was_damaged_since_is_not_called_trained(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, config_file) == 0
    folder = model_folder(config_file)
    whole = (folder / RUN).read_text()
    (folder / RUN).write_text(json.dumps({**json.loads(whole), "metrics": {}}))
    assert train(monkeypatch, config_file) == 2
    assert "is not as the training wrote it" in capsys.readouterr().err
    (folder / RUN).write_text(whole)
    os.truncate(folder / "model.safetensors", 100)
    assert train(monkeypatch, config_file) == 2
    assert "cut off or exchanged; --overwrite trains it anew\n" in capsys.readouterr().err
    assert train(monkeypatch, config_file, "--overwrite") == 0
    assert train(monkeypatch, config_file) == 0


def test_a_champion_that_cannot_be_compared_is_told_before_the_training(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, config_file, "--register", "chat") == 0
    other = str(config_file.parent / "other")
    options = ("--bigram-vocab-size", "270", "--out", other, "--register", "chat")
    assert train(monkeypatch, config_file, *options) == 2
    assert "was scored on other validation data or by another tokenizer" in capsys.readouterr().err
    assert not Path(other).exists()
    assert train(monkeypatch, config_file, *options, "--force") == 0
    assert "chat version 2, the champion: forced" in capsys.readouterr().out.replace("\n", " ")


LONG = ("--epochs", "8", "--phase2-patience", "8", "--phase2-batch-size", "16")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_that_was_ended_after_an_epoch_resumes_to_the_same_weights(
    ending: signal.Signals, config_file: Path, chat_file: Path, chat_inputs: Inputs, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [sys.executable, str(ROOT / "trainables" / "train.py"), *command(config_file, *LONG)[1:]]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    pattern = f"mlruns/models/*/{WORK}/{EPOCHS}"
    while not list(config_file.parent.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(ending)
    _, errors = process.communicate(timeout=60)
    folder = model_folder(config_file)
    assert (folder / WORK / EPOCHS).exists(), "no epoch had ended in time"
    assert not (folder / RUN).exists()
    if ending == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert errors == "\ninterrupted; the same command resumes after the last epoch that has ended\n"
        assert mlflow_runs(config_file)[0][0].info.status == "KILLED"
    assert train(monkeypatch, config_file, *LONG) == 0
    assert "resuming after epoch" in capsys.readouterr().out
    long = run_config(chat_file, phase2_epochs=8, phase2_patience=8, phase2_batch_size=16)
    expected = run(long, chat_inputs, ArtifactStore(config_file.parent / "other"))
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.model.state_dict().items())
    assert json.loads((folder / RUN).read_text())["metrics"][names.VAL_PPL] == expected.metrics[names.VAL_PPL]
    assert not (folder / WORK).exists()
    ((run_of_it,), client) = mlflow_runs(config_file)
    assert run_of_it.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(run_of_it.info.run_id, names.EPOCH_VAL_PPL)]
    assert steps == list(range(1, 9))


def test_a_folder_whose_training_was_killed_before_it_began_is_nobodys(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config_file.parent / "out" / WORK).mkdir(parents=True)
    assert train(monkeypatch, config_file, "--out", str(config_file.parent / "out")) == 0


def test_a_damaged_state_is_a_sentence(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("trainables.training.run.score_splits", stop)
        assert train(monkeypatch, config_file) == 130
    state = model_folder(config_file) / WORK / EPOCHS
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    assert train(monkeypatch, config_file) == 2
    assert "is damaged" in capsys.readouterr().err
    state.write_bytes(content.replace(b"fp32 products", b"bf16 products"))
    assert train(monkeypatch, config_file) == 2
    assert "the interrupted training had compute bf16 products" in capsys.readouterr().err
    state.write_bytes(content)
    assert train(monkeypatch, config_file) == 0
    assert os.listdir(model_folder(config_file)).count(WORK) == 0


def test_a_disk_that_cannot_be_written_ends_the_training_with_a_sentence(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainables.training.run.EPOCHS", "no-such-folder/epochs.safetensors")
    assert train(monkeypatch, config_file) == 1
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.endswith("once that is mended, the same command goes on\n")
    assert mlflow_runs(config_file)[0][0].info.status == "FAILED"
    monkeypatch.undo()
    assert train(monkeypatch, config_file) == 0
