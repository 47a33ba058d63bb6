"""What the command lines of several programs have in common. Imports nothing heavy."""

import argparse
import math
import os
import re
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_THREADS = 1024


def as_count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def as_threads(text: str) -> int:
    """A number of CPU threads that a process can have; of thousands, the operating system ends it."""
    count = as_count(text)
    if count > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_THREADS}, not {count}")
    return count


def as_seed(text: str) -> int:
    """A whole number that torch takes as a seed."""
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63-1, not {text!r}")
    return int(text)


def as_amount(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def as_folder(text: str) -> Path:
    """A folder that may or may not be there."""
    if not text:
        raise argparse.ArgumentTypeError("must name a folder")
    return Path(os.path.expanduser(text))


def as_name(text: str) -> str:
    """A name that is safe in a path, a database and MLflow."""
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"must be letters, digits, '.', '_' and '-', at most 100, and start with a letter or digit, not {text!r}"
        )
    return text
