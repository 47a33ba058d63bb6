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
from trainables.errors import NoResultError
from trainables.evaluation.evaluate import score_metrics, score_splits
from trainables.host.devices import choose_device, hardware
from trainables.host.digests import TRIAL, code_digest
from trainables.host.machine import usable_cpus
from trainables.inputs.overlap import SEQUENCES, as_params, describe_overlap
from trainables.inputs.sources import is_chat
from trainables.phases.convergence import with_converged
from trainables.pipeline import Inputs, RunResult, prepare_inputs, run
from trainables.progress import Progress
from trainables.tracking.model_runs import TRIAL_RUN_TAG, ModelRun
from trainables.tracking.places import FOLDER_TAG
from trainables.tracking.run_record import read_record, run_record, seal, stream_digest
from trainables.tracking.study_runs import COMPUTE_TAG, HASH_TAG, STUDY_TAG, TRIAL_TAG
from trainables.training.epoch_file import EpochFile
from trainables.training.model_folder import ModelFolder
from trainables.training.options import TrainingSettings
from trainables.training.view import View

EPOCHS, MLFLOW, MADE = "epochs.safetensors", "mlflow.json", "model"  # in the folder that a training goes on from
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
        mlflow = ModelRun(settings.records, settings.destination.uri, console.print)
        trial = trial_of(settings, mlflow)
        token = (begun or {}).get("token") or uuid.uuid4().hex  # on disk before MLflow has a run of it
        folder.begin({"token": token})
    try:
        with user_errors():
            mlflow.take_up(token, folder.path.name, *params_and_tags(settings, place, inputs, trial))
        say_start(settings, place, inputs, console)
        if left is not None:
            console.print(f"resuming after epoch {len(left.epochs)}")
        result = _fit(settings, inputs, store, checkpoints, mlflow, console)
        with console.status("scoring validation and test …"):
            scored = score_splits(inputs.corpus, place.device, result.evaluate)
            metrics = result.metrics | score_metrics(scored, inputs.corpus, len(inputs.embedding.table))
        metrics[names.TOTAL_SECONDS] += left.seconds if left else 0.0  # Phase 2's before an interruption
    except NoResultError as error:
        mlflow.end("FAILED", str(error))
        folder.clear()
        raise
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        mlflow.end("KILLED" if killed else "FAILED", "interrupted" if killed else f"{type(error).__name__}: {error}")
        raise
    made = folder.work / MADE
    save_model(result.model.cpu(), made, inputs.corpus.tokenizer_json)
    record = run_record(
        settings.config,
        metrics,
        inputs.corpus,
        is_chat(settings.data),
        scored,
        trial,
        vars(place),
        mlflow.run_id,
    )
    tags = {COMPUTE_TAG: place.compute, FOLDER_TAG: str(folder.path.resolve())}
    mlflow.leave(
        with_converged(settings.config, metrics), tags, folder.work / MLFLOW
    )  # first: killed from here on, the same command completes the run
    folder.finish(made, seal({**record, "identity": folder.identity}, made))
    if mlflow.finish_later(folder.work / MLFLOW):
        folder.clear()
    else:
        console.print("MLflow is away and lacks the end of this run; the same command completes it", style="bold")
    return record


def _check_champion(settings: TrainingSettings, inputs: Inputs) -> None:
    """Raise ValueError if the model is to be registered beside a champion that it could not be compared with."""
    if settings.register is None or settings.force:
        return
    from trainables.tracking.registry import check_comparable

    digest = stream_digest(inputs.corpus.validation.tokens.tobytes(), inputs.corpus.tokenizer_json)
    check_comparable(settings.register, settings.destination.uri or settings.records.tracking_uri, digest)


def complete(settings: TrainingSettings, folder: ModelFolder, console: Console) -> None:
    """Look whether a training that has ended left a usable model, and hand over what MLflow was not told of it.

    Raises:
        UserError: the model or its record is not as it was written.
    """
    with user_errors("--overwrite trains it anew"):
        read_record(folder.path)
        load_model(folder.path)
    with user_errors():
        left = folder.work / MLFLOW
        if left.exists() and not ModelRun(settings.records, settings.destination.uri, console.print).finish_later(left):
            return
    folder.clear()


def trial_of(settings: TrainingSettings, mlflow: ModelRun) -> dict[str, Any] | None:
    """The trial that the configuration comes from, if any: study, study_id, number, hash and mlflow_run."""
    trial = settings.chosen.trial
    return trial and {**trial, "mlflow_run": mlflow.trial_run(trial["study"], trial["study_id"], trial["hash"])}


def params_and_tags(
    settings: TrainingSettings, place: Place, inputs: Inputs, trial: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What MLflow is told of every training: configuration, overlap, machine, the trial that it comes from."""
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
    mlflow: ModelRun,
    console: Console,
) -> RunResult:
    """The run itself, shown and told to MLflow as it goes."""
    with View(console, settings.config) as view:
        points: list[tuple[str, int, float]] = []

        def listen(step: Progress) -> None:
            view(step)
            points.extend((name, step.step, value) for name, value in step.series.items())
            if step.phase != "phase 1":  # sweeps are told together
                mlflow.log(points)
                points.clear()

        result = run(settings.config, inputs, store, settings.device, listen, checkpoints)
        view.end()
    return result
