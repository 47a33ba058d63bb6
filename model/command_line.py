"""What `generate.py` and `evaluate.py` share: one sentence and exit code 2 for what a user can mend."""

import argparse
import os
import sys
from collections.abc import Callable


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a model and where it computes."""
    parser.add_argument(
        "model", help="a model folder, or models:/NAME@ALIAS in the registry that MLFLOW_TRACKING_URI names"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")


def run(main: Callable[[], None]) -> int:
    """Call `main`; the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C, 1 where nobody reads on."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0
