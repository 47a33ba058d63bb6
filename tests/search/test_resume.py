"""`--resume STUDY`: what is kept of a command line and given again."""

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from model import modes
from search import asym_layers, context_modes, options, resume
from search.options import build_parser, check
from search.resume import check_content, keep, parse, study_of
from trainables.records import Records
from trainables.tracking.destination import Destination, destination
from trainables.training.studies import runs_went


def parser(entry: str = "asym_layers.py") -> argparse.ArgumentParser:
    made = build_parser("", sampled=True)
    made.prog = entry
    return made


def begun(root: Path, chat_file: Path, *options: str) -> argparse.Namespace:
    """A study `s` whose options are kept."""
    args = parse(parser(), ["--mlruns", str(root), "--name", "s", "--data", str(chat_file), *options])
    folder = root / "studies" / "s"
    folder.mkdir(parents=True)
    settings = check(args, sampled=True)
    where = destination(args.tracking_uri, runs_went(settings.records, "s"), settings.records)
    keep(args, settings, where, "search/asym_layers.py", folder)
    return args


def test_a_study_is_continued_with_the_options_it_was_begun_with(tmp_path: Path, chat_file: Path) -> None:
    options = ("--vocab-size", "300", "--context-dims", "8,16", "--epochs", "3", "--seed", "4", "--scheduler", "asha")
    args = begun(tmp_path, chat_file, *options, "--trials", "7", "--max-hours", "2", "--plateau", "3")
    again = parse(parser(), ["--mlruns", str(tmp_path), "--resume", "s"])
    assert check(again, sampled=True).base == check(args, sampled=True).base
    assert (again.name, again.trials, again.context_dims, again.scheduler) == ("s", 7, (8, 16), "asha")
    assert (again.max_hours, again.plateau) == (None, None)  # of that run only


def test_data_are_found_from_another_folder(tmp_path: Path, chat_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chat_file.parent)
    begun(tmp_path, Path(chat_file.name))
    monkeypatch.chdir(tmp_path)
    assert parse(parser(), ["--mlruns", str(tmp_path), "--resume", "s"]).data == str(chat_file)


def test_what_does_not_define_a_study_may_change(tmp_path: Path, chat_file: Path) -> None:
    begun(tmp_path, chat_file, "--trials", "7")
    more = [
        "--replicates",
        "3",
        "--trial-timeout",
        "5",
        "--trials",
        "9",
        "--max-concurrent",
        "1",
        "--cpus-per-trial",
        "0.5",
        "--max-hours",
        "1",
        "--plateau",
        "2",
    ]
    args = parse(parser(), ["--mlruns", str(tmp_path), "--resume", "s", *more])
    assert (args.trials, args.max_concurrent, args.cpus_per_trial) == (9, 1, 0.5)
    assert (args.max_hours, args.plateau, args.replicates, args.trial_timeout) == (1.0, 2, 3, 5.0)


def test_options_that_define_the_study_are_refused_by_name_even_at_their_defaults(
    tmp_path: Path, chat_file: Path
) -> None:
    begun(tmp_path, chat_file)
    with pytest.raises(ValueError, match="leave out --context-dims, --sampler, --seed"):
        parse(parser(), ["--resume", "s", "--seed", "0", "--sampler", "gp", "--context-dims", "8"])


def test_an_unknown_study_is_refused_with_the_known_ones(tmp_path: Path, chat_file: Path) -> None:
    with pytest.raises(ValueError, match="there is none yet"):
        parse(parser(), ["--mlruns", str(tmp_path), "--resume", "other"])
    begun(tmp_path, chat_file)
    with pytest.raises(ValueError, match="known are s"):
        parse(parser(), ["--mlruns", str(tmp_path), "--resume", "other"])


def test_the_wrong_entry_names_the_right_command(tmp_path: Path, chat_file: Path) -> None:
    begun(tmp_path, chat_file)
    with pytest.raises(ValueError, match=r"python .*search/asym_layers\.py --resume s"):
        parse(parser("context_modes.py"), ["--mlruns", str(tmp_path), "--resume", "s"])


def moved_data(tmp_path: Path, chat_file: Path) -> tuple[Path, Path]:
    """A study of a file that was moved since: where it was and where it is."""
    before, now = tmp_path / "data.jsonl", tmp_path / "moved %20 a::b [x].jsonl"
    shutil.copy(chat_file, before)
    args = begun(tmp_path, before)
    record = Records.at(tmp_path).study_record("s")
    record.write_text(json.dumps({"data_fingerprint": check(args, sampled=True).data.fingerprint}))
    before.rename(now)
    return before, now


def test_data_that_moved_may_be_named(tmp_path: Path, chat_file: Path) -> None:
    before, now = moved_data(tmp_path, chat_file)
    with pytest.raises(ValueError, match=re.escape(f"data file '{before}' does not exist: give --data with where")):
        parse(parser(), ["--mlruns", str(tmp_path), "--resume", "s"])
    args = parse(parser(), ["--mlruns", str(tmp_path), "--resume", "s", "--data", str(now)])
    settings = check(args, sampled=True)
    check_content(args, settings)
    keep(args, settings, Destination(None, None), "search/asym_layers.py", tmp_path / "studies" / "s")
    assert parse(parser(), ["--mlruns", str(tmp_path), "--resume", "s"]).data == str(now)


def test_other_data_than_the_studys_are_refused(tmp_path: Path, chat_file: Path) -> None:
    _, now = moved_data(tmp_path, chat_file)
    now.write_text(now.read_text() + '{"text": "one more"}\n')
    args = parse(parser(), ["--mlruns", str(tmp_path), "--resume", "s", "--data", str(now)])
    with pytest.raises(ValueError, match=re.escape(f"--resume s: '{now}' has not the content that the study")):
        check_content(args, check(args, sampled=True))


@pytest.mark.parametrize("entry", [asym_layers, context_modes])
@pytest.mark.parametrize("named", [("--name", "s"), ()], ids=["by name", "by its definition"])
def test_a_study_goes_on_with_the_context_modes_it_was_begun_with(
    tmp_path: Path, chat_file: Path, monkeypatch: pytest.MonkeyPatch, entry: ModuleType, named: tuple[str, ...]
) -> None:
    line = ["--mlruns", str(tmp_path), "--data", str(chat_file), *named]
    settings = check(parse(parser(), line), sampled=True)
    begun = study_of(entry.study, settings)
    name = settings.name or begun.default_name(settings.data.label)
    file = settings.records.study_record(name)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(begun.definition()))
    monkeypatch.setitem(modes._READS, "current_then_previous", lambda c, t: (modes.Read(c, 0), modes.Read(1, 1))[:t])
    more = (*modes.CONTEXT_MODES, "current_then_previous")
    for module in (modes, resume, options):
        monkeypatch.setattr(module, "CONTEXT_MODES", more)
    settings = check(parse(parser(), line), sampled=True)
    assert study_of(entry.study, settings).definition() == begun.definition()
    fresh = study_of(entry.study, replace(settings, name="another"))
    assert fresh.space.context_modes == more
    assert fresh.default_name("x") != begun.default_name("x")
