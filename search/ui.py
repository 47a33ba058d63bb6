"""Open MLflow's UI on a store of this project, on this machine only."""

import os
import sys
from pathlib import Path

from model.cli import Parser
from model.errors import Exit
from model.output import print_without_fail
from trainables.records import DEFAULT_ROOT, Records


def main() -> None:
    """Replace this process by MLflow's server; exit with 2 if there is no store, or none that MLflow can open."""
    print_without_fail()
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--mlruns",
        type=Path,
        default=Path(DEFAULT_ROOT),
        metavar="DIR",
        help="as given to the study (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=5000, help="(default: %(default)s)")
    args = parser.parse_args()
    if not 1 <= args.port <= 65_535:
        parser.error(f"argument --port: must be 1 to 65535, not {args.port}")
    records = Records.at(args.mlruns)
    if not records.mlflow_database.exists():
        print(
            f"error: no MLflow store in {args.mlruns}/ yet: run a study first, or give --mlruns",
            file=sys.stderr,
        )
        sys.exit(Exit.USER_ERROR)
    from trainables.tracking.store import StoreView

    try:
        StoreView(records.tracking_uri)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.USER_ERROR)
    print(f"MLflow on http://127.0.0.1:{args.port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", records.tracking_uri]
    options = [
        "--default-artifact-root",
        records.artifacts.as_uri(),
        "--host",
        "127.0.0.1",
        "--port",
        str(args.port),
        "--workers",
        "1",
    ]
    os.execv(sys.executable, [*command, *options])


if __name__ == "__main__":
    main()
