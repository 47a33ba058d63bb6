"""One full run outside of Ray: from a checked command line to a model folder and its record in MLflow."""

import uuid
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from model.errors import user_errors
from model.ops.compute import Compute
from model.text.checkpoint import load_model, save_model
from trainables import metrics as names
from trainables.cache import ArtifactStore
from trainables.errors import AwayError, NoResultError
from trainables.evaluation.evaluate import score_metrics, score_splits
from trainables.host.devices import choose_device, hardware
from trainables.host.digests import TRIAL, code_digest
from trainables.host.machine import usable_cpus
from trainables.host.signals import defer_signals
from trainables.inputs.overlap import SEQUENCES, as_params, describe_overlap
from trainables.inputs.sources import is_chat
from trainables.phases.convergence import with_converged
from trainables.pipeline import Inputs, RunResult, prepare_inputs, run
from trainables.progress import Progress
from trainables.reports import Point
from trainables.tracking.model_runs import TRIAL_RUN_TAG, ModelRuns
from trainables.tracking.operations import FailRun, FinishRun, LogPoints, StartRun, read_left
from trainables.tracking.places import FOLDER_TAG
from trainables.tracking.run_record import read_record, run_record, seal, stream_digest
from trainables.tracking.store import reached
from trainables.tracking.tags import COMPUTE_TAG, HASH_TAG, STUDY_TAG, TRIAL_TAG
from trainables.tracking.writer import BackgroundWriter
from trainables.training.epoch_file import EpochFile
from trainables.training.model_folder import ModelFolder
from trainables.training.options import TrainingSettings
from trainables.training.view import View

AWAY = "MLflow is away and lacks the end of this run; the same command completes it"
# in the folder that a training goes on from
EPOCHS, JOURNAL, MADE = "epochs.safetensors", "mlflow.journal", "model"
LEFT = "mlflow.json"  # what earlier versions left for an MLflow that was away
CLOSE = 0.005  # of the trial's PPL: other hardware may differ by so much


@dataclass(frozen=True)
class Place:
    """What this process computes on; a training that is interrupted goes on bit by bit where all of it is the same."""

    device: str
    threads: int
    device_name: str
    compute: str
    torch: str
    code: str  # `digests.code_digest`

    @classmethod
    def of(cls, settings: TrainingSettings) -> "Place":
        gpus = float(settings.device == "cuda")
        device = choose_device(gpus, "--device cpu")
        compute = str(Compute.of(device))
        return cls(device, settings.threads, hardware(gpus), compute, torch.__version__, code_digest(TRIAL))


def prepare_training(settings: TrainingSettings, console: Console) -> tuple[Place, Inputs, ArtifactStore]:
    """What a training needs; from here on this process computes with the threads that were asked for.

    Raises:
        ValueError: the device, the data or the embedding cannot be used.
    """
    place = Place.of(settings)
    store = ArtifactStore(settings.records.cache)
    torch.set_num_threads(usable_cpus())  # as a study does: a bigram's last digits depend on it
    with console.status("preparing token ids and embedding …"):
        inputs = prepare_inputs(settings.config, settings.data, settings.embedding, store, place.device)
    torch.set_num_threads(settings.threads)
    return place, inputs, store


def train(settings: TrainingSettings, folder: ModelFolder, console: Console) -> dict[str, Any]:
    """Train, score and save; the record that was written. The folder is locked.

    Raises:
        UserError: what the user can mend.
        NoResultError: the run diverged, collapsed or does not fit.
    """
    with user_errors():
        place, inputs, store = prepare_training(settings, console)
        _check_champion(settings, inputs)
        begun = folder.begun()
        if begun is None:
            folder.clear()
        checkpoints = EpochFile(folder.work / EPOCHS, {**vars(place), "inputs": inputs.digest}, place.device)
        left = checkpoints.load()
        runs = ModelRuns(settings.records, settings.destination.uri)
        trial = trial_of(settings, runs)
        token = (begun or {}).get("token") or uuid.uuid4().hex  # on disk before MLflow has a run of it
        folder.begin({"token": token})
        writer = BackgroundWriter(runs, folder.work / JOURNAL, console.print, "training")
    params, tags = params_and_tags(settings, place, inputs, trial)
    run_id = ""
    try:
        with user_errors(), reached(), defer_signals():
            runs.apply(StartRun(token, name=folder.path.name, params=params, tags=tags))
            run_id = runs.run_id(token)
            folder.begin({"token": token, "mlflow_run": run_id})
        say_start(settings, place, inputs, console)
        if left is not None:
            console.print(f"resuming after epoch {len(left.epochs)}")
        result = _fit(settings, inputs, store, checkpoints, writer, token, console)
        with console.status("scoring validation and test …"):
            scored = score_splits(inputs.corpus, place.device, result.evaluate)
            metrics = result.metrics | score_metrics(scored, inputs.corpus, len(inputs.embedding.table))
        metrics[names.TOTAL_SECONDS] += left.seconds if left else 0.0  # Phase 2's before an interruption
    except BaseException as error:
        if run_id:
            writer.put(_failure(token, error))
            writer.close()
        if isinstance(error, NoResultError):
            folder.clear()
        raise
    made = folder.work / MADE
    save_model(result.model.cpu(), made, inputs.corpus.tokenizer_json)
    record = run_record(
        settings.config, metrics, inputs.corpus, is_chat(settings.data), scored, trial, vars(place), run_id
    )
    folder.finish(made, seal({**record, "identity": folder.identity}, made))
    _finish_run(writer, token, settings, folder, record, console)  # killed before its end, the same command does this
    return record


def _failure(token: str, error: BaseException) -> FailRun:
    if isinstance(error, KeyboardInterrupt):
        return FailRun(token, reason="interrupted", status="KILLED")
    return FailRun(token, reason=str(error) if isinstance(error, NoResultError) else f"{type(error).__name__}: {error}")


def _finish_run(
    writer: BackgroundWriter,
    token: str,
    settings: TrainingSettings,
    folder: ModelFolder,
    record: dict[str, Any],
    console: Console,
) -> None:
    """End the run of a model that is in its folder; where MLflow is away, the same command does it."""
    tags = {COMPUTE_TAG: record["computed"]["compute"], FOLDER_TAG: str(folder.path.resolve())}
    writer.put(FinishRun(token, figures=with_converged(settings.config, record["metrics"]), place=tags))
    with console.status("handing the record to MLflow …"):
        lacking = writer.close()
    if lacking:
        console.print(AWAY, style="bold")
    else:
        folder.clear()


def _check_champion(settings: TrainingSettings, inputs: Inputs) -> None:
    """Raise ValueError if the model is to be registered beside a champion that it could not be compared with."""
    if settings.register is None or settings.force:
        return
    from trainables.tracking.registry import check_comparable

    digest = stream_digest(inputs.corpus.validation.tokens.tobytes(), inputs.corpus.tokenizer_json)
    check_comparable(settings.register, settings.destination.uri or settings.records.tracking_uri, digest)


def complete(settings: TrainingSettings, folder: ModelFolder, console: Console) -> None:
    """Look whether a training that has ended left a usable model, and hand over what MLflow has not got of it.

    Raises:
        UserError: the model or its record is not as it was written.
    """
    with user_errors("--overwrite trains it anew"):
        record = read_record(folder.path)
        load_model(folder.path)
    begun, left = folder.begun() or {}, folder.work / LEFT
    if not left.exists() and begun.get("mlflow_run") != record["mlflow_run"]:
        folder.clear()  # MLflow has all, or a training with --overwrite was interrupted
        return
    with user_errors():
        runs = ModelRuns(settings.records, settings.destination.uri)
        try:
            writer = BackgroundWriter(runs, folder.work / JOURNAL, console.print, "training")
        except AwayError:
            console.print(AWAY, style="bold")
            return
        for operation in read_left(left, begun["token"]):
            writer.put(operation)
    _finish_run(writer, begun["token"], settings, folder, record, console)


def trial_of(settings: TrainingSettings, runs: ModelRuns) -> dict[str, Any] | None:
    """The trial that the configuration comes from, if any: study, study_id, number, hash and mlflow_run."""
    trial = settings.chosen.trial
    return trial and {**trial, "mlflow_run": runs.trial_run(trial["study"], trial["study_id"], trial["hash"])}


def params_and_tags(
    settings: TrainingSettings, place: Place, inputs: Inputs, trial: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What MLflow gets of every training: configuration, overlap, machine, the trial that it comes from."""
    tags = {HASH_TAG: settings.config.config_hash(), COMPUTE_TAG: place.compute}
    if trial is not None:
        tags |= {STUDY_TAG: trial["study"], TRIAL_TAG: str(trial["number"])}
        tags |= {TRIAL_RUN_TAG: trial["mlflow_run"]} if trial["mlflow_run"] else {}
    computed = {"device_name": place.device_name, "threads": place.threads}
    return settings.config.flat() | as_params(inputs.corpus.overlap) | computed, tags


def say_start(settings: TrainingSettings, place: Place, inputs: Inputs, console: Console) -> None:
    """The data's sizes, the machine, and where the trial was computed otherwise."""
    corpus = inputs.corpus
    sizes = [f"{len(getattr(corpus, split).tokens):,} {split}" for split in ("train", "validation", "test")]
    console.print(f"data {settings.data.spec}: {', '.join(sizes)} tokens", soft_wrap=True)
    console.print(f"{SEQUENCES}: {describe_overlap(as_params(corpus.overlap))}")
    console.print(f"on {place.device_name}, {place.threads} CPU thread(s): {place.compute}")
    then = settings.chosen.runtime
    now = {"device_name": place.device_name, "threads": place.threads, "compute": place.compute}
    if settings.of_the_trial and then.get("code", place.code) != place.code:
        console.print(f"the trial was of other code ({then['code'][:8]}): it may have had another result", style="bold")
    if settings.chosen.note:
        console.print(settings.chosen.note, style="bold")
    other = [f"{name} {then[name]}" for name in now if name in then and then[name] != now[name]]
    trial = settings.chosen.trial
    if settings.of_the_trial and trial and trial["hash"] != settings.config.config_hash():
        console.print("the method has changed since the trial: it may have had another result", style="bold")
    if settings.of_the_trial and other:
        console.print(
            f"the trial was computed otherwise ({', '.join(other)}): its PPL is met within {CLOSE:.1%}", style="bold"
        )


def compare(settings: TrainingSettings, record: dict[str, Any]) -> Text:
    """How the PPL compares with the trial's whose configuration this is; empty where it is no trial's."""
    if not settings.of_the_trial or settings.chosen.val_ppl is None:
        return Text()
    trial, ppl = settings.chosen.val_ppl, record["metrics"][names.VAL_PPL]
    if ppl == trial:
        return Text(f"validation PPL {ppl:.4f} is the trial's, to the last digit")
    apart = abs(ppl / trial - 1)
    text = f"validation PPL {ppl:.4f} is not the trial's {trial:.4f}: {apart:.2g} of it apart"
    return Text(text) if apart < CLOSE else Text(f"{text}, more than {CLOSE:.1%}", style="bold red")


def _fit(
    settings: TrainingSettings,
    inputs: Inputs,
    store: ArtifactStore,
    checkpoints: EpochFile,
    writer: BackgroundWriter,
    token: str,
    console: Console,
) -> RunResult:
    """The run itself, shown and handed to MLflow as it goes."""
    with View(console, settings.config) as view:
        points: list[Point] = []

        def listen(step: Progress) -> None:
            view(step)
            points.extend(Point(name, step.step, value) for name, value in step.series.items())
            if points and step.phase != "phase 1":  # sweeps are logged together
                writer.put(LogPoints(token, points=points[:]))
                points.clear()

        result = run(settings.config, inputs, store, settings.device, listen, checkpoints)
        view.end()
    return result
