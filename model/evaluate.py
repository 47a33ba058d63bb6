"""How well a trained model predicts a text file: perplexity, accuracy, bits per byte."""

import argparse
import dataclasses
import json
import sys
import time

from model.cli import Parser, add_model, open_model, run
from model.errors import user_errors
from model.text.documents import documents_of


def _arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, allow_abbrev=False)
    add_model(parser)
    parser.add_argument(
        "file",
        help="a .jsonl or .jsonl.gz of records with `messages` or `text`, or any other UTF-8 file as one text; "
        "several documents are one stream with nothing between them, as in training",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> None:
    """Run the command line.

    Raises:
        UserError: what the user can mend.
    """
    args = _arguments()
    with user_errors():
        documents = documents_of(args.file)
    model = open_model(args)
    began = time.perf_counter()
    with user_errors():  # too few tokens
        score = model.score(documents)
    seconds = time.perf_counter() - began
    if args.json:
        print(json.dumps(dataclasses.asdict(score) | {"documents": len(documents), "seconds": seconds}))
        return
    print(f"PPL            {score.ppl:,.2f}")
    print(f"accuracy       {score.accuracy:.1%}")
    print(f"bits per byte  {score.bits_per_byte:.3f}")
    print(f"{score.tokens:,} tokens, {score.bytes:,} bytes, {len(documents):,} documents, {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(run(main))
