"""Open MLflow's UI on a store of this project, on this machine only."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from model.cli import Parser
from model.errors import Exit, UserError, user_errors
from model.output import print_without_fail
from trainables.errors import OtherVersionError
from trainables.host.arguments import as_folder
from trainables.records import DEFAULT_ROOT, Records, sqlite_uri


def _to_look_at(records: Records, stack: ExitStack) -> Path:
    """MLflow's database with the places of now; a copy for the time of `stack` where it cannot be written to.

    Raises:
        ValueError: it cannot be read.
    """
    from trainables.host.preflight import may_be_written
    from trainables.tracking.places import InUseElsewhereError, in_use, rewrite, snapshots

    why = "may only be read"
    if may_be_written(records):
        try:
            with in_use(records):
                return records.mlflow_database
        except InUseElsewhereError as error:
            why = str(error)
    (copy,) = stack.enter_context(snapshots(records.mlflow_database))
    assert copy is not None
    rewrite(copy, records.root)
    print(f"{records.root}/: {why}. MLflow shows a copy of its records as they are now")
    return copy


def _serve(command: list[str]) -> int:
    """Run MLflow's server until it ends or this process is told to; its exit code."""
    server = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()


def _open(records: Records, port: int) -> int:
    """Replace this process by MLflow's server, or wait for one that shows a copy.

    Raises:
        ValueError: MLflow cannot open the store.
    """
    from trainables.tracking.store import StoreView

    with ExitStack() as stack:
        database = _to_look_at(records, stack)
        try:
            StoreView(sqlite_uri(database))
        except OtherVersionError as error:
            raise error.at(records.tracking_uri) from None
        print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", sqlite_uri(database)]
        options = ["--default-artifact-root", records.artifacts.as_uri(), "--host", "127.0.0.1", "--port", str(port)]
        command += [*options, "--workers", "1"]
        if database == records.mlflow_database:
            os.execv(sys.executable, command)
        return _serve(command)


def main() -> int:
    """Show a store; exit with 2 if there is none, or none that MLflow can open."""
    print_without_fail()
    parser = Parser(description=__doc__, allow_abbrev=False)
    root = "as given to the study (default: %(default)s)"
    parser.add_argument("--mlruns", type=as_folder, default=Path(DEFAULT_ROOT), metavar="DIR", help=root)
    parser.add_argument("--port", type=int, default=5000, help="(default: %(default)s)")
    args = parser.parse_args()
    if not 1 <= args.port <= 65_535:
        parser.error(f"argument --port: must be 1 to 65535, not {args.port}")
    try:
        with user_errors():
            records = Records.at(args.mlruns)
            if not records.mlflow_database.exists():
                raise ValueError(f"no MLflow store in {args.mlruns}/ yet: run a study first, or give --mlruns")
            return _open(records, args.port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
