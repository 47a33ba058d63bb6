"""Continue a text, or talk, with a trained model; the text comes as it is made."""

import argparse
import io
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model.cli import Parser, add_model, open_model, run
from model.errors import UserError, user_errors
from model.text.sampling import Sampling

if TYPE_CHECKING:
    from model.text.chat import Chat


def _arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, allow_abbrev=False)
    add_model(parser)
    parser.add_argument(
        "prompt", nargs="?", help="what to continue; - reads it from standard input, without its last line end"
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="the prompt is a user's turn; without one, in a terminal, talk by turns. A reply is one line; "
        "for models that were trained on conversations",
    )
    parser.add_argument("--max-tokens", type=int, default=Sampling.max_tokens, help="(default: %(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=Sampling.temperature,
        help="0: the most likely token (default: %(default)s)",
    )
    parser.add_argument("--top-k", type=int, help="of the k most likely tokens only (default: of all)")
    parser.add_argument(
        "--top-p",
        type=float,
        default=Sampling.top_p,
        help="of the fewest tokens that have this probability together (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=Sampling.seed, help="(default: %(default)s)")
    return parser.parse_intermixed_args()  # `FOLDER --chat "hello"` too


def _prompt(args: argparse.Namespace) -> str | None:
    """The prompt; None: there will be several, typed."""
    if args.prompt == "-":
        try:
            return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"the prompt is not UTF-8 ({error.reason})") from None
    if args.prompt is None and not (args.chat and sys.stdin.isatty()):
        raise UserError("give a prompt, or - to read it from standard input; or --chat in a terminal, to talk")
    prompt: str | None = args.prompt
    if prompt is not None and any("\udc80" <= letter <= "\udcff" for letter in prompt):
        raise UserError("the prompt is not UTF-8")  # Python's stand-ins for bytes that are not
    return prompt


def _show(pieces: Iterator[str]) -> int:
    """Print pieces as they come; how many they were."""
    count = 0
    for piece in pieces:
        print(piece, end="", flush=True)
        count += 1
    print(flush=True)
    return count


def main() -> None:
    """Run the command line.

    Raises:
        UserError: what the user can mend.
    """
    args = _arguments()
    with user_errors():
        sampling = Sampling(
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
        )
    prompt = _prompt(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows a ? for it

    from model.text.chat import Chat  # only now: torch takes seconds to import
    from model.text.continuation import Continuation

    model = open_model(args)
    if args.chat and model.chat is False:
        raise UserError("--chat: this model was trained on plain text, not on conversations; leave --chat out")
    chat = Chat(Continuation(model, sampling))
    if prompt is None:
        _talk(chat)
        return
    with user_errors():
        pieces = chat.say(prompt) if args.chat else model.generate(prompt, **vars(sampling))
    began = time.perf_counter()
    count = _show(pieces)
    seconds = time.perf_counter() - began
    print(f"{count} tokens, {count / seconds:.1f} tokens/s", file=sys.stderr)


def _talk(chat: "Chat") -> None:
    """Turn by turn until the end of input."""
    print("Ctrl-D ends the conversation.", file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return
        if text.strip():
            with user_errors():
                pieces = chat.say(text)
            _show(pieces)


if __name__ == "__main__":
    sys.exit(run(main))
