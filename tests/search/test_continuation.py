"""A study that goes on with other code or on another device: refused, then tried, then kept apart or taken as one."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from costless import handed_out, replicated, value_of
from studies import ROOT, SMALL

from search.continuation import accept, others, refusal, threads_before, without_replicates
from search.execution.cluster import Resources
from search.findings.evidence import OTHER_CODE, compare, load_evidence
from search.findings.leaderboard import CODE, leaderboard, origins_told
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord, continued, with_trials, write_trial_record
from search.ledger.results import load_results
from search.ledger.trials import CONFIG, HASH, trial_config
from trainables import metrics as names
from trainables.config import RunConfig
from trainables.host.digests import PACKAGES, Provenance
from trainables.metrics import PHASE1_SECONDS, PHASE2_SECONDS, VAL_PPL
from trainables.records import Records

OLD = Provenance(code="old", torch="2.11.0", device="cpu", compute="fp32")
NEW = Provenance(code="new", torch="2.11.0", device="cpu", compute="fp32")


def finish(ledger: Ledger, made: Provenance | None, value: float | None = None) -> int:
    """One more trial."""
    assignment = handed_out(ledger)
    ppl = value_of(assignment.config) if value is None else value
    others = dict.fromkeys((names.TOTAL_PARAMS, names.SWEEPS, names.CONVERGENCE, names.VAL_ER, names.VAL_ACC), 1.0)
    figures = others | {VAL_PPL: ppl, PHASE1_SECONDS: 1.0 + assignment.number, PHASE2_SECONDS: 1.0}
    ledger.complete(assignment.number, figures, "fp32", vars(made) if made else None)
    return assignment.number


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A study with two trials of OLD."""
    found = replicated(8, 1, tmp_path / "optuna.db")
    finish(found, OLD)
    finish(found, OLD)
    return found


def figures_of(ledger: Ledger, number: int, **changes: float) -> tuple[dict[str, float], list[float]]:
    trial = next(t for t in ledger.finished() if t.number == number)
    return trial.user_attrs["metrics"] | {PHASE1_SECONDS: 99.0} | changes, []


def test_the_same_code_and_device_goes_on_without_a_word(ledger: Ledger) -> None:
    assert refusal(ledger, OLD) is None


def with_threads(made: Provenance, threads: int) -> Provenance:
    return replace(made, threads=threads)


def test_another_number_of_threads_is_named_and_stops_the_study(tmp_path: Path) -> None:
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    finish(ledger, with_threads(OLD, 1))
    assert refusal(ledger, with_threads(OLD, 1)) is None
    said = refusal(ledger, with_threads(OLD, 2))
    assert said is not None
    assert "(1 trial(s): threads was 1, is 2)" in said


def test_a_fraction_of_a_cpu_computes_as_one_thread_does() -> None:
    assert {Resources(cpus, 0, 1).threads for cpus in (0.25, 0.5, 1.0, 1.5)} == {1}


def test_code_and_threads_are_told_apart_one_after_the_other(tmp_path: Path) -> None:
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    finish(ledger, with_threads(OLD, 1))
    ppl, asked = figures_of(ledger, 0)[0][VAL_PPL], []

    def repeat(config: RunConfig, threads: int) -> tuple[dict[str, float], list[float]]:
        asked.append(threads)
        return figures_of(ledger, 0, **{VAL_PPL: ppl if threads == 1 else ppl + 1e-9})

    (said,) = accept(ledger, Records.at(tmp_path), with_threads(NEW, 2), repeat)
    assert asked == [1, 2]
    assert "with 1 thread(s): equal to the last digit with 2 thread(s): phase2/val_ppl was" in said
    assert refusal(ledger, with_threads(NEW, 1)) is None, "the code gives the same figures"
    assert [origin.label for origin in others(ledger, with_threads(NEW, 2))] == ["A"], "the threads do not"


def test_a_trial_of_other_threads_alone_is_repeated_with_todays(tmp_path: Path) -> None:
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    finish(ledger, with_threads(OLD, 1))
    asked = []

    def repeat(config: RunConfig, threads: int) -> tuple[dict[str, float], list[float]]:
        asked.append(threads)
        return figures_of(ledger, 0)

    accept(ledger, Records.at(tmp_path), with_threads(OLD, 2), repeat)
    assert asked == [2]
    assert others(ledger, with_threads(OLD, 2)) == []


def test_a_study_of_before_threads_were_recorded_goes_on_with_those_of_its_files(tmp_path: Path) -> None:
    records = Records.at(tmp_path)
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    before = {key: value for key, value in vars(OLD).items() if key != "threads"}
    for threads in (1, 1, 2):
        assignment = handed_out(ledger)
        config, number = assignment.config, assignment.number
        left = TrialRecord(config.config_hash(), number, config.seed).ended(
            "finished", result={"runtime": {"threads": threads}}
        )
        write_trial_record(records.trial_record(ledger.name, config.config_hash()), left)
        ledger.complete(number, {VAL_PPL: value_of(config)}, "fp32", before)
    ledger.keep_same_results(OLD.digest, NEW.digest)
    ledger.accept(OLD.digest)
    assert threads_before(ledger, records) == {0: 1, 1: 1, 2: 2}
    ledger.keep_threads(threads_before(ledger, records))
    again = replicated(8, 1, tmp_path / "optuna.db")
    assert threads_before(again, records) == {}
    assert [len(origin.trials) for origin in again.origins()] == [2, 1]
    assert [len(origin.trials) for origin in others(again, with_threads(OLD, 1))] == [1]
    assert refusal(again, with_threads(OLD, 1)) is None, "it was accepted"


@pytest.mark.parametrize("field", ["code", "torch", "device", "compute"])
def test_another_code_torch_or_device_is_named_and_stops_the_study(ledger: Ledger, field: str) -> None:
    now = Provenance(**(vars(OLD) | {field: "another"}))
    said = refusal(ledger, now)
    assert said is not None
    assert f"{field} was {vars(OLD)[field]}, is another" in said
    assert "--accept-code" in said


def test_trials_of_before_it_was_recorded_say_so(tmp_path: Path) -> None:
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    finish(ledger, None)
    said = refusal(ledger, NEW)
    assert said is not None
    assert "code not recorded" in said


def test_figures_that_are_equal_make_both_count_as_one(ledger: Ledger, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def repeat(config: RunConfig, threads: int) -> tuple[dict[str, float], list[float]]:
        asked.append(config.flat())
        return figures_of(ledger, 0)

    (said,) = accept(ledger, Records.at(tmp_path), NEW, repeat)
    assert "equal to the last digit" in said
    assert asked == [ledger.finished()[0].user_attrs["config"]], "the cheapest is trained again"
    assert others(ledger, NEW) == []
    finish(ledger, NEW)
    assert len(ledger.origins()) == 1
    assert CODE not in leaderboard(ledger, None).columns
    (told,) = origins_told(ledger)
    assert told.startswith("counted as one, since a trial trained again gave the same figures: code old")
    assert "trials 0, 1; code new" in told


def test_figures_that_differ_are_kept_apart_everywhere(ledger: Ledger, tmp_path: Path) -> None:
    ppl = figures_of(ledger, 0)[0][VAL_PPL]
    (said,) = accept(ledger, Records.at(tmp_path), NEW, lambda *_: figures_of(ledger, 0, **{VAL_PPL: ppl + 1e-9}))
    assert f"{VAL_PPL} was {ppl!r}" in said
    assert refusal(ledger, NEW) is None, "what was accepted is not asked for again"
    lucky = finish(ledger, NEW, value=0.5)
    frame = leaderboard(ledger, None)
    assert dict(zip(frame["trial"], frame[CODE], strict=True)) == {0: "A", 1: "A", lucky: "B"}
    assert [line.partition(":")[0] for line in origins_told(ledger)] == ["code A", "code B"]
    leader = ledger.leader()
    assert leader is not None
    assert leader.first.number in (0, 1), "one trial of other code does not lead two"
    rows = {
        row.other.found.first.number: row.verdict
        for row in compare(ledger, load_evidence(ledger, Records.at(tmp_path))).rows
    }
    assert rows[lucky] == OTHER_CODE


def test_losses_by_document_that_differ_keep_equal_figures_apart(ledger: Ledger, tmp_path: Path) -> None:
    records = Records.at(tmp_path)
    first = ledger.finished()[0]
    path = records.trial_record(ledger.name, first.user_attrs[HASH])
    left = TrialRecord(first.user_attrs[HASH], first.number, 0)
    nats = [math.log(value_of(trial_config(first)))] * 2
    write_trial_record(path, left.ended("finished", result={"nats": nats, "targets": [1, 1]}))
    (said,) = accept(ledger, records, NEW, lambda *_: (figures_of(ledger, 0)[0], [nats[0], nats[1] + 1e-12]))
    assert "the losses by document differ" in said
    assert len(others(ledger, NEW)) == 1
    (said,) = accept(ledger, records, NEW, lambda *_: (figures_of(ledger, 0)[0], nats))
    assert "equal to the last digit" in said
    assert others(ledger, NEW) == []


def test_a_mean_over_seeds_is_of_one_code(tmp_path: Path) -> None:
    ledger = replicated(4, 2, tmp_path / "optuna.db")
    for _ in range(4):
        finish(ledger, OLD)
    assignment = handed_out(ledger)
    assert assignment.replicate_of is not None
    ledger.complete(assignment.number, {VAL_PPL: 1.0}, "fp32", vars(NEW))
    assert all(len(found.trials) == 1 for found in ledger.configurations())


def test_replicates_of_other_code_are_not_trained_in_vain_and_said(tmp_path: Path) -> None:
    """Four trials of OLD; NEW gives other figures, and further seeds of it would count in no mean."""
    ledger = replicated(5, 3, tmp_path / "optuna.db")
    for _ in range(4):
        finish(ledger, OLD)
    ppl = figures_of(ledger, 0)[0][VAL_PPL]
    accept(ledger, Records.at(tmp_path), NEW, lambda *_: figures_of(ledger, 0, **{VAL_PPL: ppl + 1e-9}))
    assert without_replicates(ledger, OLD) is None
    assert "(trials 0, 1, 2, 3)" in without_replicates(ledger, NEW)
    ledger.digest = NEW.digest
    own = finish(ledger, NEW)
    handed = []
    while (assignment := ledger.next()) is not None:
        handed.append((assignment.replicate_of, assignment.config.seed))
        ledger.complete(assignment.number, {VAL_PPL: 1.0}, "fp32", vars(NEW))
    assert handed == [(own, 1), (own, 2)]
    assert sorted(len(found.trials) for found in ledger.configurations()) == [1, 1, 1, 1, 3]
    assert not any("no mean" in line for line in origins_told(ledger))
    ledger.digest = OLD.digest  # the old code again: nothing of its own was taken from it
    assert {trial.number for trial, _ in ledger.open_replicates()} == {0, 1, 2, 3}


def test_replicates_that_count_in_no_mean_are_told(tmp_path: Path) -> None:
    ledger = replicated(4, 2, tmp_path / "optuna.db")
    for _ in range(4):
        finish(ledger, OLD)
    number = finish(ledger, NEW)
    finish(ledger, OLD)
    assert [trial.number for trial in ledger.apart()] == [number]
    (told,) = origins_told(ledger)
    assert told == f"1 replicate(s) of other code than their first seed count in no mean: trials {number}"


def test_what_other_code_pruned_is_refused_and_told_too(tmp_path: Path) -> None:
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    finish(ledger, NEW)
    pruned = handed_out(ledger).number
    ledger.prune(pruned, "collapsed", {}, vars(OLD))
    ledger.fail(handed_out(ledger).number, "diverged", vars(OLD))
    said = refusal(ledger, NEW)
    assert said is not None
    assert "(1 pruned trial(s): code was old, is new)" in said
    (told,) = accept(ledger, Records.at(tmp_path), NEW, lambda *_: pytest.fail("of NEW's own trials none runs again"))
    assert f"(trials {pruned})" in told
    assert refusal(ledger, NEW) is None


def test_pruned_trials_of_before_it_was_recorded_refuse_nothing(tmp_path: Path) -> None:
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    finish(ledger, NEW)
    ledger.prune(handed_out(ledger).number, "collapsed", {})
    assert refusal(ledger, NEW) is None


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "documents.jsonl"
    lines = [json.dumps({"text": f"The {n} of {n * 7 % 31} is not {n * n % 101}. " * 6}) for n in range(120)]
    file.write_text("\n".join(lines))
    return file


def run(entry: Path, cwd: Path, data: Path, root: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    typed = [sys.executable, str(entry), "--data", str(data), "--mlruns", str(root), *SMALL, "--epochs", "1", *options]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env
    return subprocess.run(typed, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second checkout, whose Phase 2 learns ten times as fast."""
    folder = tmp_path_factory.mktemp("other")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "trainables" / "phases" / "phase2.py"
    text = file.read_text()
    assert "config.learning_rate" in text
    file.write_text(text.replace("config.learning_rate", "10 * config.learning_rate"))
    return folder


@pytest.mark.slow
def test_the_driver_s_code_is_what_runs_and_other_code_is_told(documents: Path, other: Path, tmp_path: Path) -> None:
    entry, root = ROOT / "search" / "asym_layers.py", tmp_path / "records"
    stray = tmp_path / "stray"
    (stray / "datasets").mkdir(parents=True)
    for file in (stray / "model.py", stray / "datasets" / "__init__.py"):
        file.write_text("raise RuntimeError('a stray module was imported')")
    options = ("--trials", "4", "--max-concurrent", "1")
    first = run(entry, stray, documents, root, *options, PYTHONPATH=str(ROOT))
    assert first.returncode == 0, first.stderr
    # the same study from within another checkout: its code is not run
    again = run(entry, other, documents, tmp_path / "again", *options, PYTHONPATH=str(ROOT))
    assert again.returncode == 0, again.stderr
    shown = [json.loads((r / "studies" / "small" / "best.json").read_text()) for r in (root, tmp_path / "again")]
    assert shown[0]["metrics"][VAL_PPL] == shown[1]["metrics"][VAL_PPL]

    changed = run(other / "search" / "asym_layers.py", other, documents, root, PYTHONPATH=str(other))
    assert changed.returncode == 2
    assert "other code" in changed.stderr

    def accepting(*more: str) -> subprocess.CompletedProcess[str]:
        typed = [sys.executable, str(other / "search" / "asym_layers.py"), "--mlruns", str(root), "--resume", "small"]
        environment = os.environ | {"PYTHONPATH": str(other)}
        whole = [*typed, *more, "--accept-code"]
        return subprocess.run(whole, cwd=other, env=environment, capture_output=True, text=True, check=False)

    in_vain = accepting("--trials", "4", "--replicates", "2")
    assert in_vain.returncode == 0, in_vain.stderr
    said = " ".join(in_vain.stdout.split())
    assert "only like is compared with like" in said
    assert "no further seeds of other code's configurations (trials 0, 1, 2, 3)" in said
    assert "0 ran now" in in_vain.stdout
    accepted = accepting("--trials", "5", "--replicates", "1")
    assert accepted.returncode == 0, accepted.stderr
    history = json.loads((root / "studies" / "small" / "study.json").read_text())["history"]
    assert [entry["trials"] for entry in history] == [[0, 1, 2, 3], [], [4]]
    assert history[0]["digest"] != history[2]["digest"]


def test_the_history_names_each_trial_once_also_of_a_run_that_was_killed() -> None:
    begun = continued([], {"code": "a", "version_torch": "2.11.0", "data": "x"}, "one")
    assert begun[0]["version_torch"] == "2.11.0"
    killed = with_trials(begun, [0, 2])  # as the next run finds it
    again = continued(killed, {"code": "b"}, "two")
    done = with_trials(with_trials(again, [0, 1, 2, 4]), [0, 1, 2, 4])
    assert [(entry["command"], entry["code"], entry["trials"]) for entry in done] == [
        ("one", "a", [0, 2]),
        ("two", "b", [1, 4]),
    ]
    assert with_trials([], [0]) == []


def test_a_script_of_one_checkout_with_packages_of_another_is_refused(other: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(other / "search" / "asym_layers.py"), "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert str(other) in done.stderr
    assert str(ROOT) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["trainables/train.py", "model/generate.py", "model/evaluate.py"])
def test_so_are_the_scripts_of_the_other_packages(other: Path, script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(other / script), "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {other / script} was started, but Python finds its packages in {ROOT}")
    assert len(done.stderr.splitlines()) == 1


def test_a_module_on_the_path_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise RuntimeError('a stray module was imported')")
    done = subprocess.run(
        [sys.executable, str(ROOT / "search" / "asym_layers.py"), "--help"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert str(tmp_path / "model.py") in done.stderr


def test_a_trial_that_was_copied_from_elsewhere_counts_for_nothing(tmp_path: Path) -> None:
    ledger = replicated(8, 1, tmp_path / "optuna.db")
    finish(ledger, NEW)
    best = ledger.best()
    assert best is not None
    other = optuna.load_study(study_name=ledger.name, storage=ledger.storage)
    attrs = best.user_attrs
    copies = {
        "another value": (attrs, 1.5),
        "another hash": ({**attrs, HASH: "0" * 16}, best.value),
        "other data": (_of_other_data(attrs), best.value),
    }
    for changed, value in copies.values():
        other.add_trial(optuna.trial.create_trial(value=value, user_attrs=changed))
    database = tmp_path / "optuna.db"
    for results in (load_results(ledger.name, database), Ledger(ledger.study, ledger.name, database)):
        assert len(results.finished()) == len(ledger.finished())
        found = results.best()
        assert found is not None
        assert found.number == best.number


def _of_other_data(attrs: dict[str, Any]) -> dict[str, Any]:
    config = RunConfig.from_flat(attrs[CONFIG] | {"data_fingerprint": "of other data"})
    return attrs | {CONFIG: config.flat(), HASH: config.config_hash()}
