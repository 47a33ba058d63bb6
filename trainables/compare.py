"""Entry: a configuration beside a GRU and a transformer of its size, on the same data and judged alike.

python trainables/compare.py --from-study STUDY
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainables.bootstrap import Interval
    from trainables.contest import Contender


def markdown(contenders: "Sequence[Contender]") -> str:
    """One column for each model, one row for each figure."""
    from trainables.contest import LENGTHS

    def row(name: str, cells: list[str]) -> str:
        return f"| {' | '.join([name, *cells])} |"

    each = list(contenders)
    lines = [row("", [f"{c.kind} {c.shape}" for c in each]), "|---" * (len(each) + 1) + "|"]
    lines += [
        row("validation PPL", [f"{c.val_ppl:.2f}" for c in each]),
        row("test PPL [95 %]", [_interval(c.test.ppl, 1, 2) for c in each]),
        row("test accuracy, % [95 %]", [_interval(c.test.accuracy, 100, 1) for c in each]),
        row("test top-5, % [95 %]", [_interval(c.test.top5, 100, 1) for c in each]),
        row("test bits per byte [95 %]", [_interval(c.test.bits_per_byte, 1, 3) for c in each]),
        row("parameters trained", [f"{c.trained:,}" for c in each]),
        row("epochs", [str(c.epochs) for c in each]),
        row("learning rate", [f"{c.learning_rate:g}" for c in each]),
        row("seconds of one training", [f"{c.seconds:.1f}" for c in each]),
        row("training tokens/s", [f"{c.tokens_per_second:,.0f}" for c in each]),
        row("peak memory, MB", ["–" if c.peak_bytes is None else f"{c.peak_bytes / 1e6:,.0f}" for c in each]),
    ]
    for number, length in enumerate(LENGTHS):
        lines.append(row(f"state after {length:,} tokens, bytes", [f"{c.state_bytes[number]:,}" for c in each]))
    return "\n".join(lines)


def _interval(interval: "Interval", factor: float, digits: int) -> str:
    value, low, high = (f"{factor * end:.{digits}f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
