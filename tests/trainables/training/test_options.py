"""The command line of trainables/train.py, on made-up studies: no torch is needed."""

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from small import run_config

from trainables.baselines.networks import MODELS
from trainables.config import METHOD_VERSION, BigramConfig, RunConfig
from trainables.metrics import VAL_PPL
from trainables.records import Records
from trainables.training.options import BASELINES, TrainingSettings, build_parser, flat_fields, parse

ROOT = Path(__file__).parents[3]


def write_study(root: Path, configs: list[RunConfig], leader: int = 0) -> None:
    """A study `s` whose trials 10, 11, … are these, in the leaderboard's order."""
    folder = Records.at(root).study("s")
    (folder / "trials").mkdir(parents=True)
    runtime = {"device_name": "2 x cpu", "threads": 3, "gpus": 0, "compute": "fp32"}
    rows = ["trial,config,val PPL", ",bigram,1.0"]
    for index, config in enumerate(configs):
        record = {"trial": 10 + index, "config_hash": config.config_hash(), "config": config.flat(), "runtime": runtime}
        path = folder / "trials" / f"{config.config_hash()}.json"
        path.write_text(json.dumps({**record, "metrics": {VAL_PPL: 20.0 + index}}))
        rows.append(f"{10 + index},C2T2,{20.0 + index}")
    (folder / "leaderboard.csv").write_text("\n".join(rows) + "\n")
    best = {
        "study": "s",
        "study_id": "1d",
        "trial": 10 + leader,
        "config_hash": configs[leader].config_hash(),
        "runtime": runtime,
    }
    best |= {"config": configs[leader].flat(), "metrics": {VAL_PPL: 20.0 + leader}}
    (folder / "best.json").write_text(json.dumps(best))


@pytest.fixture
def root(tmp_path: Path, chat_file: Path) -> Path:
    """Records with a study of three configurations, the second its leader."""
    write_study(tmp_path / "mlruns", [run_config(chat_file, context_dim=dim) for dim in (8, 9, 10)], leader=1)
    return tmp_path / "mlruns"


def parsed(root: Path, *options: str) -> TrainingSettings:
    return parse("", ["--mlruns", str(root), *options])


@pytest.mark.parametrize(("rank", "dim", "number"), [(None, 9, 11), (1, 9, 11), (2, 8, 10), (3, 10, 12)])
def test_the_leader_is_first_and_the_others_follow_the_leaderboard(
    root: Path, rank: int | None, dim: int, number: int
) -> None:
    settings = parsed(root, "--from-study", "s", *([] if rank is None else ["--rank", str(rank)]))
    assert settings.config.context_dim == dim
    trial = settings.chosen.trial
    assert trial == {"study": "s", "study_id": "1d", "number": number, "hash": settings.config.config_hash()}
    assert settings.chosen.val_ppl == 10 + number
    assert (settings.device, settings.threads) == ("cpu", 3)
    assert settings.of_the_trial


def test_a_best_json_is_its_trial_and_a_flat_configuration_is_none(root: Path, tmp_path: Path) -> None:
    best = Records.at(root).study("s") / "best.json"
    assert parsed(root, "--config", str(best)).chosen == parsed(root, "--from-study", "s").chosen
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps(json.loads(best.read_text())["config"]))
    settings = parsed(root, "--config", str(flat))
    assert settings.config.context_dim == 9
    assert settings.chosen.trial is None
    assert not settings.of_the_trial


def test_a_trial_of_an_earlier_version_of_the_method_is_still_compared(root: Path) -> None:
    for path in Records.at(root).study("s").glob("trials/*.json"):
        content = json.loads(path.read_text())
        earlier = RunConfig.from_flat(content["config"]).config_hash(METHOD_VERSION - 1)
        path.write_text(json.dumps(content | {"config_hash": earlier}))
    settings = parsed(root, "--from-study", "s")
    old = settings.config.config_hash(METHOD_VERSION - 1)
    assert settings.of_the_trial
    assert settings.chosen.trial == {"study": "s", "study_id": "1d", "number": 11, "hash": old}


def test_an_edited_best_json_is_of_no_trial_and_says_so(root: Path) -> None:
    best = Records.at(root).study("s") / "best.json"
    content = json.loads(best.read_text())
    content["config"]["phase2_learning_rate"] = 0.5
    best.write_text(json.dumps(content))
    settings = parsed(root, "--config", str(best))
    assert settings.config.phase2.learning_rate == 0.5
    assert (settings.chosen.trial, settings.chosen.val_ppl, settings.of_the_trial) == (None, None, False)
    assert settings.chosen.note.startswith("this file's configuration is not that of trial 11")


def test_an_edited_trial_file_is_not_trained_from(root: Path) -> None:
    for path in Records.at(root).study("s").glob("trials/*.json"):
        content = json.loads(path.read_text())
        content["config"]["phase2_learning_rate"] = 0.5
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not as trial 11 wrote it"):
        parsed(root, "--from-study", "s")


def test_a_trial_file_of_another_digest_than_the_ledger_keeps_is_not_trained_from(root: Path) -> None:
    with closing(sqlite3.connect(Records.at(root).optuna_database)) as ledger, ledger:
        ledger.executescript(
            "CREATE TABLE studies (study_id, study_name); INSERT INTO studies VALUES (1, 's');"
            "CREATE TABLE trials (trial_id, number, study_id); INSERT INTO trials VALUES (7, 11, 1);"
            "CREATE TABLE trial_user_attributes (trial_id, key, value_json);"
            "INSERT INTO trial_user_attributes VALUES (7, 'record', '\"0123\"');"
        )
    with pytest.raises(ValueError, match="is not as trial 11 wrote it"):
        parsed(root, "--from-study", "s")


def test_every_field_of_a_configuration_has_an_option(chat_file: Path, root: Path) -> None:
    config = run_config(chat_file, context_dim=9)  # the leader's
    assert set(flat_fields()) == {name for name in config.flat() if not name.endswith("fingerprint")}
    fixed = {"data", "embedding", "samples", "context_mode", "contexts_train"}
    for name, kind in flat_fields().items():
        if name not in fixed:
            value = kind(1 if name == "phase1_converged_share" else config.flat()[name] + 1)
            changed = parsed(root, "--from-study", "s", f"--{name.replace('_', '-')}", str(value))
            assert changed.config.flat()[name] == value
            assert not changed.of_the_trial
    several = parsed(root, "--from-study", "s", "--samples", "90", "--context-mode", "final_only", "--epochs", "7")
    assert (several.config.samples, several.config.context_mode, several.config.phase2.epochs) == (90, "final_only", 7)


def test_other_data_and_another_embedding_take_their_own_fingerprints(root: Path, chat_file: Path) -> None:
    other = parsed(root, "--from-study", "s", "--data", "pydoc")
    base = parsed(root, "--from-study", "s")
    assert other.config.data_fingerprint == other.data.fingerprint != base.config.data_fingerprint
    copied = chat_file.with_name("copy.jsonl")
    copied.write_bytes(chat_file.read_bytes())
    assert parsed(root, "--from-study", "s", "--data", str(copied)).of_the_trial
    assert parsed(root, "--from-study", "s", "--samples", "100", "--data", "pydoc").config.samples == 100


def test_samples_belong_to_their_data(tmp_path: Path, chat_file: Path) -> None:
    write_study(tmp_path, [run_config(chat_file, samples=100)])
    assert parsed(tmp_path, "--from-study", "s").config.samples == 100
    assert parsed(tmp_path, "--from-study", "s", "--samples", "all").config.samples is None
    assert parsed(tmp_path, "--from-study", "s", "--data", "pydoc").config.samples is None
    assert parsed(tmp_path, "--from-study", "s", "--data", str(chat_file)).config.samples == 100


def test_a_configuration_of_a_causal_lm_may_take_a_bigram_instead(
    tmp_path: Path, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = run_config(chat_file).flat()
    flat = {name: value for name, value in flat.items() if not name.startswith("bigram_")}
    flat |= {"embedding": "some/model", "embedding_fingerprint": "x"}
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(flat))
    config = parsed(tmp_path, "--config", str(path), "--embedding", "bigram", "--vocab-size", "300").config
    assert config.bigram == BigramConfig(vocab_size=300)


def test_a_configuration_written_by_hand_needs_no_fingerprints(tmp_path: Path, chat_file: Path) -> None:
    path = tmp_path / "flat.json"
    path.write_text(json.dumps({"data": str(chat_file), "embedding": "bigram", "context_dim": 8}))
    config = parsed(tmp_path, "--config", str(path)).config
    assert config.bigram == BigramConfig()
    named = parsed(tmp_path, "--config", str(path), "--data", str(chat_file), "--embedding", "bigram").config
    assert config == named
    assert config.data_fingerprint


def test_baselines_are_named_one_by_one(root: Path) -> None:
    assert list(BASELINES) == list(MODELS)
    assert parsed(root, "--from-study", "s").baselines == []
    both = ["--baseline", "transformer", "--baseline", "gru", "--baseline", "transformer"]
    assert parsed(root, "--from-study", "s", *both).baselines == ["transformer", "gru"]


def test_what_makes_another_model_gets_another_folder(root: Path) -> None:
    folders = {
        parsed(root, "--from-study", "s", *options).out.name
        for options in ([], ["--rank", "2"], ["--seed", "3"], ["--epochs", "9"], ["--context-mode", "final_only"])
    }
    assert len(folders) == 5
    assert parsed(root, "--from-study", "s").out.parent == root / "models"


STRANGE = [
    (lambda best: best.pop("trial"), "names no trial"),
    (lambda best: best.update(trial="x"), "names no trial"),
    (lambda best: best.update(metrics=[]), "its `metrics` is no JSON object"),
    (lambda best: best["metrics"].update({"phase2/val_ppl": "x"}), "its phase2/val_ppl is 'x'"),
    (lambda best: best["runtime"].update(threads="four"), "has 'four' threads"),
    (lambda best: best["runtime"].update(threads=-1), "has -1 threads"),
    (lambda best: best["runtime"].update(gpus="one"), "'one' GPUs"),
    (lambda best: best["config"].update(context_layers=None), "context_layers must be of type int, not None"),
    (lambda best: best["config"].update(samples=True), "samples must be of type int, not True"),
]


@pytest.mark.parametrize(("damage", "sentence"), STRANGE)
def test_strange_records_are_told_before_anything_starts(
    root: Path, damage: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    """A study's leader is read from `best.json` and from its trial's own record."""
    best = Records.at(root).study("s") / "best.json"
    content = json.loads(best.read_text())
    damage(content)
    best.write_text(json.dumps(content))
    config = ["--config", str(best)] if "trial" in content else ["--from-study", "s"]
    with pytest.raises(ValueError, match=sentence) as found:
        parsed(root, *config)
    assert "\n" not in str(found.value)


def test_a_damaged_leaderboard_is_told(root: Path) -> None:
    leaderboard = Records.at(root).study("s") / "leaderboard.csv"
    for content in ("PPL,config\n1,2\n", "trial\nfirst\n"):
        leaderboard.write_text(content)
        with pytest.raises(ValueError, match="is no leaderboard"):
            parsed(root, "--from-study", "s", "--rank", "2")
    leaderboard.unlink()
    with pytest.raises(ValueError, match=r"leaderboard.csv cannot be read: No such file"):
        parsed(root, "--from-study", "s")


BAD = [
    (["--from-study", "unknown"], "no such study in .* (known are empty, s)"),
    (["--from-study", "s", "--rank", "4"], "--rank 4: study 's' has 3 finished configurations"),
    (["--from-study", "empty"], "study 'empty' has no best.json: it is written when"),
    (["--config", "missing.json"], "missing.json cannot be read: No such file or directory"),
    (["--config", "BEST", "--rank", "2"], "--rank belongs to --from-study"),
    (["--from-study", "s", "--force"], "--force belongs to --register"),
    (["--from-study", "s", "--baseline", "gru", "--out", "x"], "--out and --baseline do not go together"),
    (["--from-study", "s", "--baseline", "gru", "--register", "x"], "--register and --baseline do not go together"),
    (["--from-study", "s", "--baseline", "gru", "--overwrite"], "--overwrite and --baseline do not go together"),
    (["--from-study", "s", "--context-mode", "sideways"], "sideways"),
    (["--from-study", "s", "--phase2-epochs", "0"], "phase2_epochs must be at least 1, not 0"),
    (["--from-study", "s", "--data", "nowhere.jsonl"], "data file 'nowhere.jsonl' does not exist"),
    (["--from-study", "s", "--embedding", "./no-model"], "embedding folder './no-model' does not exist"),
    (["--from-study", "s", "--device", "cuda"], "--device cuda: this machine has no usable GPU"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_what_cannot_work_is_one_sentence(
    root: Path, options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Records.at(root).study("empty").mkdir()
    best = str(Records.at(root).study("s") / "best.json")
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(").replace(")", r"\)")) as found:
        parsed(root, *(best if option == "BEST" else option for option in options))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "options",
    [[], ["--from-study", "s", "--config", "x"], ["--from-study", "s", "--threads", "0"],
     ["--from-study", "s", "--threads", "1025"],
     ["--from-study", "s", "--seed", "one"], ["--from-study", "s", "--phase2-learning-rate", "nan"],
     ["--from-study", "s", "--baseline", "lstm"],
     ["--from-study", "s", "--no-such", "1"], ["--from-study", "s", "--register", "a/b"]],
)  # fmt: skip
def test_what_the_parser_refuses_is_one_sentence_and_exit_code_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser("").parse_args(options)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"config": 3}', '{"data": 3}', '{"data": "pydoc", "embedding": "bigram", "seed": "x"}']
)
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r".") as found:
        parsed(tmp_path, "--config", str(path))
    assert "\n" not in str(found.value)


def test_data_that_changed_since_is_refused_unless_it_is_named(tmp_path: Path, chat_file: Path) -> None:
    data = tmp_path / "chat.jsonl"
    data.write_bytes(chat_file.read_bytes())
    write_study(tmp_path / "mlruns", [run_config(data)])
    data.write_text(data.read_text() + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(ValueError, match="is not what it was: give --data"):
        parsed(tmp_path / "mlruns", "--from-study", "s")
    assert not parsed(tmp_path / "mlruns", "--from-study", "s", "--data", str(data)).of_the_trial


def test_a_wrong_option_ends_before_anything_heavy_is_imported(root: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', '--from-study', 'unknown', '--mlruns', {str(root)!r}]\n"
        "try:\n    runpy.run_module('trainables.train', run_name='__main__')\n"
        "except SystemExit as ended:\n    code = ended.code\n"
        "heavy = {'torch', 'mlflow', 'ray', 'optuna', 'numpy', 'pandas', 'rich'} & set(sys.modules)\n"
        "print(code, sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "2 []\n"
    assert done.stderr.startswith("error: --from-study unknown: no such study")
    assert done.stderr.count("\n") == 1


def test_data_that_moved_are_named_by_their_place_of_now(tmp_path: Path, chat_file: Path) -> None:
    before, now = tmp_path / "data.jsonl", tmp_path / "moved.jsonl"
    before.write_bytes(chat_file.read_bytes())
    write_study(tmp_path, [run_config(before, samples=100)])
    before.rename(now)
    with pytest.raises(ValueError, match=re.escape(f"data file '{before}' does not exist: give --data with where")):
        parsed(tmp_path, "--from-study", "s")
    settings = parsed(tmp_path, "--from-study", "s", "--data", str(now))
    assert (settings.of_the_trial, settings.config.samples) == (True, 100)
