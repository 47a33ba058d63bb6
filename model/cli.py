"""What the commands share: one sentence and exit code 2 for what a user can mend."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from model.errors import Exit, UserError, message_of, user_errors, without_passwords
from model.output import open_standard_files, print_in_any_encoding

if TYPE_CHECKING:
    from model.text.text_model import TextModel

# Parameters up to which one CPU thread serves: products of small models take microseconds, and threads that share them
# wait for each other, ten times as long where other work keeps the cores busy (a study, say).
SMALL = 10_000_000
ONE_CHECKOUT = "`pip install -e` the one you want to run, or put it first on PYTHONPATH"


class Parser(argparse.ArgumentParser):
    """One sentence where argparse would print the whole usage before it, or where other code than meant would run.

    argparse and no library on top of it: an error of arguments is to take 0.3 s at most, and takes 0.3 s on two busy
    cores, of which the start of Python is a third; importing tyro takes 0.11 s more there, jsonargparse 0.2 s.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        started = Path(getattr(sys.modules.get("__main__"), "__file__", None) or __file__).resolve()
        root = Path(__file__).resolve().parents[1]
        of_this_project = (started.parent / "__init__.py").is_file() and (root / started.parent.name).is_dir()
        if of_this_project and started.parent != root / started.parent.name:
            self.exit(2, f"error: {started} was started, but Python finds its packages in {root}: {ONE_CHECKOUT}\n")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {without_passwords(message)} (--help lists the options)\n")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a model and where it computes."""
    parser.add_argument(
        "model", help="a model folder, or models:/NAME@ALIAS in the registry that MLFLOW_TRACKING_URI names"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")


def open_model(args: argparse.Namespace) -> "TextModel":
    """The model that the arguments name.

    Raises:
        UserError: there is none.
    """
    import torch  # only now: it takes seconds to import

    from model import load

    with user_errors():
        model = load(args.model, args.device)
    if model.network.num_parameters() < SMALL:
        torch.set_num_threads(1)
    return model


def run(main: Callable[[], None]) -> int:
    """Call `main`; the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C, 1 where nobody reads on."""
    if sys.stdout is None:  # what is printed is the result
        print("error: standard output is closed", file=sys.stderr)
        return Exit.USER_ERROR
    open_standard_files()
    print_in_any_encoding()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except (UserError, OSError) as error:  # OSError: of what is printed, to a full disk
        print(f"error: {message_of(error)}", file=sys.stderr)
        return Exit.USER_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return Exit.INTERRUPTED
    return Exit.OK
