"""Which runs are made, and what they said: studies, the driver, the leaderboard."""

import importlib.util
import sys
from pathlib import Path


def _one_checkout() -> str | None:
    """What is wrong where the script that runs and the packages it imports are not of one checkout, in a sentence."""
    own = Path(__file__).resolve().parent
    started = Path(getattr(sys.modules.get("__main__"), "__file__", None) or own / "x").resolve()
    if started.parent != own and started.parent.name == own.name and (started.parent / "driver.py").is_file():
        return f"{started} was started, but Python finds its package in {own}"
    for name in ("model", "trainables"):
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve() if spec and spec.origin else None
        if place != own.parent / name / "__init__.py":
            return f"the package `search` is in {own}, but Python finds `{name}` in {place or 'no place'}"
    return None


if (_wrong := _one_checkout()) is not None:  # before anything of the other place is imported
    print(f"error: {_wrong}: `pip install -e` the one you want to run, or put it first on PYTHONPATH", file=sys.stderr)
    raise SystemExit(2)
