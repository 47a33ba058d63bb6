"""A study's configurations with their losses by document, and how the leader compares with the others."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from search.findings.leaderboard import trial_name
from search.findings.verdict import Difference, Losses, all_pairs, differences
from search.ledger.results import Configuration, Results
from search.ledger.trial_files import read_trial_file
from search.ledger.trials import SUMMARY
from trainables.evaluation.intervals import FEW, FEW_UNITS, UNITS_UNKNOWN, Interval
from trainables.inputs.overlap import largely_in_training
from trainables.phases.convergence import MARK, MARKED
from trainables.records import Records

NO_LOSSES = "no per-document losses"
CONTRADICTED = "its file and the ledger contradict each other"
OTHER_CODE = "of other code or another device: not compared"
AHEAD, TIE, BEHIND = "ahead", "tie", "behind"  # of a configuration, seen from the leader
ON_DOCUMENTS = "on these documents, seeds not tested"


@dataclass(frozen=True, eq=False)
class Evidence:
    """One configuration and what is known of it beside its figures."""

    found: Configuration
    losses: Losses | None  # None: a seed's record is missing, damaged or contradicts the ledger
    units_known: bool = True  # False: equal documents count as independent, since a record does not name them
    contradicted: tuple[str, ...] = ()  # its trials whose record contradicts the ledger, and how

    @property
    def lacks(self) -> str:
        """Why it has no losses."""
        return CONTRADICTED if self.contradicted else NO_LOSSES

    @property
    def name(self) -> str:
        """For people."""
        return trial_name(self.found.config)

    @property
    def marked(self) -> str:
        """Its name, with the mark of one whose Phase 1 did not converge."""
        return self.name if self.found.converged else f"{self.name}{MARK}"

    @property
    def num_seeds(self) -> int:
        """With how many seeds it was run."""
        return len(self.found.trials)


@dataclass(frozen=True)
class Row:
    """The leader and one other configuration."""

    other: Evidence
    difference: Difference | None  # the other minus the leader; None: not comparable
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The leader and all others, best first."""

    leader: Evidence | None
    headline: str  # one sentence
    rows: list[Row]
    notes: tuple[str, ...] = ()  # sentences on what else has to be known

    @property
    def over(self) -> str:
        """What the intervals are over, in a sentence; "" where there are none."""
        known = [row.difference for row in self.rows if row.difference is not None]
        if not known:
            return ""
        compared = [self.leader, *(row.other for row in self.rows if row.difference is not None)]
        units_known = all(each.units_known for each in compared if each is not None)
        number = f"Intervals over {documents(known[0].num_units, units_known)}."
        tested = any(difference.seeds_tested for difference in known)
        return number if tested else f"{number} One seed: this is about these trained models only."


def load_evidence(results: Results, records: Records) -> list[Evidence]:
    """All finished configurations, by mean loss."""
    loaded = [_evidence(found, results.name, records) for found in results.configurations()]
    # One data set has one list of documents, the commonest: a record of others is not this study's.
    known = Counter(e.losses.targets.tobytes() for e in loaded if e.losses is not None)
    usual = known.most_common(1)[0][0] if known else b""
    return [
        e if e.losses is not None and e.losses.targets.tobytes() == usual else replace(e, losses=None, units_known=True)
        for e in loaded
    ]


def _evidence(found: Configuration, study: str, records: Records) -> Evidence:
    """Its losses by unit, and whether all its records say which documents are one unit."""
    files = [read_trial_file(trial, study, records) for trial in found.trials]
    each = zip(found.trials, files, strict=True)
    if contradicted := tuple(f"trial {trial.number} ({file.wrong})" for trial, file in each if file.contradicts):
        return Evidence(found, None, contradicted=contradicted)
    nats: list[np.ndarray] = []
    targets, units_known = np.empty(0), True
    for file, ppl in zip(files, found.ppls, strict=True):
        known = file.record.unit_losses(ppl) if file.record else None
        if known is None or (nats and not np.array_equal(known[1], targets)):
            return Evidence(found, None)
        units_known = units_known and file.record is not None and file.record.units_known
        nats.append(known[0])
        targets = known[1]
    return Evidence(found, Losses(np.stack(nats), targets), units_known)


def comparable(results: Results, evidence: list[Evidence]) -> list[Evidence]:
    """Those whose figures come from code and devices that give the same as the leader's."""
    leader = results.leader()
    if leader is None:
        return evidence
    return [e for e in evidence if results.comparable(e.found.first, leader.first)]


def compare(results: Results, evidence: list[Evidence]) -> Comparison:
    """The leader against every other configuration."""
    return replace(_compare(results, evidence), notes=tuple(_notes(results, evidence)))


def _notes(results: Results, evidence: list[Evidence]) -> Iterator[str]:
    if contradicted := [said for e in evidence for said in e.contradicted]:
        yield f"The ledger and files contradict each other: {'; '.join(contradicted)}. search/doctor.py looks closer."
    if said := largely_in_training(results.optuna.user_attrs.get(SUMMARY, {})):
        yield said


def _compare(results: Results, evidence: list[Evidence]) -> Comparison:
    found = results.leader()
    if found is None:
        return Comparison(None, "No trial has finished.", [])
    leader = next(e for e in evidence if e.found.first.number == found.first.number)
    like = comparable(results, evidence)
    unlike = [Row(e, None, OTHER_CODE) for e in evidence if all(e is not other for other in like)]
    others = [e for e in like if e is not leader]
    usable = [e for e in (leader, *others) if e.losses is not None]
    if leader.losses is None or len(usable) < 2 or len(leader.losses.targets) < 2:
        headline = f"Lowest validation PPL: {_shown(leader)}; {_why_not(leader, others)}."
        return Comparison(leader, headline, [*(Row(other, None, other.lacks) for other in others), *unlike])
    # The leader was chosen among all of them, those without losses too: all count where intervals are widened.
    losses = [e.losses for e in usable if e.losses is not None]
    made = differences(losses, [(0, i) for i in range(1, len(usable))], all_pairs(1 + len(others)))
    known = {e.found.first.number: d for e, d in zip(usable[1:], made, strict=True)}
    rows = [_row(e, known.get(e.found.first.number)) for e in others]
    return Comparison(leader, _headline(leader, rows), [*rows, *unlike])


def _why_not(leader: Evidence, others: list[Evidence]) -> str:
    if not others:
        return "there is no other configuration to compare it with"
    if leader.losses is not None and len(leader.losses.targets) < 2:
        return "with one validation document nothing can be said of the differences"
    lacks = leader.lacks if leader.losses is None else others[0].lacks
    return f"{lacks}, so nothing can be said of the differences"


def _row(other: Evidence, difference: Difference | None) -> Row:
    if difference is None:
        return Row(other, None, other.lacks)
    # The leader is chosen among those with the most seeds: one with fewer may be better.
    verdict = TIE if difference.combined.covers_zero else BEHIND if difference.combined.low > 0 else AHEAD
    return Row(other, difference, verdict if difference.seeds_tested else f"{verdict} {ON_DOCUMENTS}")


def _shown(evidence: Evidence) -> str:
    mark = "" if evidence.found.converged else f", {MARKED}"
    return f"{evidence.name} (val PPL {evidence.found.ppl:.2f}{mark})"


def _headline(leader: Evidence, rows: list[Row]) -> str:
    """Winner or tie in one sentence; never a winner without replicates."""
    tied = [row.other.marked for row in rows if row.verdict == TIE]
    maybe = [row.other.marked for row in rows if row.verdict == f"{TIE} {ON_DOCUMENTS}"]
    if leader.num_seeds == 1:
        if maybe:
            return f"{_shown(leader)} is lowest, but not told apart from {_listed(maybe)} {ON_DOCUMENTS}."
        return f"{_shown(leader)} is {AHEAD} {ON_DOCUMENTS}."
    rivals = [row for row in rows if row.difference is not None and row.difference.seeds_tested]
    better = [row.other.marked for row in rows if row.verdict in (AHEAD, f"{AHEAD} {ON_DOCUMENTS}")]
    if better:
        seeds = f"{leader.num_seeds} seeds"
        return f"{_shown(leader)} is lowest of those with {seeds}; with fewer, {_listed(better)} is lower."
    lower = [
        row.other.marked
        for row in rows
        if row.verdict == f"{TIE} {ON_DOCUMENTS}" and row.other.found.ppl < leader.found.ppl
    ]
    if lower:
        seeds = f"{leader.num_seeds} seeds"
        return (
            f"{_shown(leader)} is lowest of those with {seeds}; with fewer, {_listed(lower)} is lower, "
            f"but not told apart {ON_DOCUMENTS}."
        )
    if tied:
        return f"Tie: {_shown(leader)} and {_listed(tied)} cannot be told apart with {leader.num_seeds} seeds."
    if not rivals:
        return f"{_shown(leader)} is lowest; no other configuration was run with several seeds."
    untested = f"; {len(rows) - len(rivals)} more have one seed, not tested" if len(rivals) < len(rows) else ""
    untested += f" ({len(maybe)} of them not told apart on these documents)" if maybe else ""
    others = "the other configuration" if len(rivals) == 1 else f"each of the {len(rivals)} others"
    return f"Winner: {_shown(leader)}, ahead of {others} run with several seeds ({leader.num_seeds} here){untested}."


def _listed(names: list[str], most: int = 4) -> str:
    shown = names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def percent(interval: Interval) -> str:
    """A difference in mean loss as one in PPL, per cent: `+1.5 % [+0.3, +2.6]`."""
    value, low, high = (100 * math.expm1(x) for x in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} % [{_plain(low)}, {_plain(high)}]"


def _plain(value: float) -> str:
    return f"{value:+.1f}" if value < 1_000 else ">+1000"  # two seeds can say next to nothing


def documents(number: int, units_known: bool = True) -> str:
    """How many independent documents an interval is over, whether they are few, and whether equal ones are known."""
    told = f"{number} documents" + ("" if units_known else f" ({UNITS_UNKNOWN})")
    return told + (f", {FEW}" if number < FEW_UNITS else "")


def absolute(interval: Interval) -> str:
    """A difference as it is: `+0.31 [+0.06, +0.55]`."""
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def as_text(row: Row) -> dict[str, str]:
    """One comparison with the leader as text."""
    told = {"name": row.other.marked, "seeds": str(row.other.num_seeds), "verdict": row.verdict}
    difference = row.difference
    blank = dict.fromkeys(("documents", "ppl", "only_seeds", "combined"), "–")
    if difference is None:
        return told | blank | {"kind": ""}
    return told | {
        "documents": percent(difference.documents),
        "ppl": absolute(difference.documents_ppl),
        "only_seeds": percent(difference.seeds) if difference.seeds else "–",
        "combined": percent(difference.combined),
        "kind": "tie" if row.verdict.startswith(TIE) else "",
    }
