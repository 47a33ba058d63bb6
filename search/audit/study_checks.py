"""A study's leaderboard and its `study.json` held against its ledger. Nothing here writes."""

import json
from collections.abc import Iterator
from typing import Any

from search.audit.findings import Finding
from search.findings.leaderboard import BEST, CSV, leaderboard
from search.ledger.records import HISTORY, TRIALS, bigram_figures, read_study_record
from search.ledger.results import Results
from search.ledger.trials import CONFIG, HASH, METRICS, PROVENANCE, SUMMARY
from trainables.host.digests import Provenance
from trainables.records import Records

LEADERBOARD, STUDY_RECORD = "leaderboard", "study record"
AT_ONCE = "--repair does it"


def check_study_record(results: Results, records: Records) -> list[Finding]:
    """`study.json` against the summary that the ledger keeps, its history against the digests of the trials."""
    summary: dict[str, Any] = results.optuna.user_attrs.get(SUMMARY, {})
    path = records.study_record(results.name)
    about = read_study_record(path)

    def of(what: str, remedy: str, repairable: bool) -> Finding:
        return Finding(kind=STUDY_RECORD, where=str(path), what=what, remedy=remedy, repairable=repairable)

    backup = "bring it back from a backup: its command, versions and history are nowhere else"
    if summary and not about:
        return [of("is damaged" if path.exists() else "is missing", backup, False)]
    other = [name for name, value in summary.items() if about.get(name) != value]
    found = [of(f"has other figures than the ledger: {', '.join(other)}", AT_ONCE, True)] if other else []
    entries = about.get(HISTORY, [])
    wrong = [what for number, entry in enumerate(entries, 1) for what in _entry_wrong(results, number, entry)]
    return found + [of(what, backup, False) for what in wrong]


def _entry_wrong(results: Results, number: int, entry: dict[str, Any]) -> Iterator[str]:
    """What an entry of the history says otherwise than the trials that it names; hosts may differ in their device."""
    known = {trial.number: trial for trial in results.optuna.get_trials(deepcopy=False)}
    strange = [each for each in entry.get(TRIALS, ()) if each not in known]
    if strange:
        yield f"entry {number} of its history names trials that the ledger has not: {', '.join(map(str, strange))}"
    of_entry = [known[each].user_attrs.get(PROVENANCE) for each in entry.get(TRIALS, ()) if each in known]
    made = [each for each in of_entry if each]
    other = {key for each in made for key in ("code", "threads") if each.get(key, 0) not in (0, entry.get(key))}
    here = [each for each in made if each["device"] == entry.get("device")]
    other |= {"digest"} if any(Provenance(**each).digest != entry.get("digest") for each in here) else set()
    if other:
        yield f"entry {number} of its history has another {' and '.join(sorted(other))} than its trials"


def check_leaderboard(results: Results, records: Records) -> list[Finding]:
    """`leaderboard.csv` and `best.json` against what the ledger says now."""
    if not results.made_with_replicates():
        return []
    folder, found = records.study(results.name), []
    csv, best = folder / CSV, folder / BEST
    try:
        wanted = leaderboard(results, bigram_figures(results.optuna.user_attrs.get(SUMMARY, {}))).to_csv(index=False)
    except KeyError as error:
        what, remedy = f"the ledger lacks the figure {error}", "bring back the optuna.db that has it"
        where = f"study {results.name}"
        return [Finding(kind=LEADERBOARD, where=where, what=what, remedy=remedy, repairable=False)]
    if not csv.exists():
        found.append((csv, "is missing"))
    elif csv.read_text(errors="replace") != wanted:
        found.append((csv, "is not what the ledger says"))
    if what := _best_wrong(results, _json(best)):
        found.append((best, what if best.exists() else "is missing"))
    return [
        Finding(kind=LEADERBOARD, where=str(path), what=what, remedy=AT_ONCE, repairable=True) for path, what in found
    ]


def _json(path: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _best_wrong(results: Results, content: Any) -> str:
    leader = results.leader()
    if leader is None:
        return "" if content is None else "names a leader, and no trial has finished"
    if not isinstance(content, dict):
        return "is damaged"
    kept = leader.first.user_attrs
    if not isinstance(content.get("seeds"), dict):
        return "has other figures than the ledger: seeds"
    if content.get("config_hash") != kept[HASH] or content.get("trial") != leader.first.number:
        return f"names trial {content.get('trial')}, by the ledger trial {leader.first.number} leads"
    seeds = content["seeds"]
    wanted = {"config": kept[CONFIG], "metrics": kept[METRICS], "study_id": results.study_id}
    other = [name for name, value in wanted.items() if content.get(name) != value]
    of_seeds = {"count": len(leader.trials), "mean_val_ppl": leader.ppl}
    other += [f"seeds.{name}" for name, value in of_seeds.items() if seeds.get(name) != value]
    return f"has other figures than the ledger: {', '.join(other)}" if other else ""
