"""Commands that run in copies of one process which has imported everything: a start saves seconds of imports.

What comes of a command is as of a Python of its own: arguments, environment, folder, output, signals, exit code. Where
a test is about what Python itself does at its start (options, PYTHONPATH, encodings, time of imports), or about another
checkout, start a process.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "trainables", "search")
KERNELS = {"model.ops.fused", "model.ops.triton_kernels", "model.ops.head_kernels"}  # imported where there is a GPU
# What commands import only when they come to it.
LATER = (
    "alembic.command", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking.client",
    "optuna.samplers._gp.sampler", "optuna.storages._rdb.storage", "optuna.visualization", "plotly.io", "ray.tune",
    "scipy.stats",
    "torch._dynamo",
)  # fmt: skip


def run(
    line: list[str],
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300,
    obeying: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of `line`, which begins with Python and a script or `-c`, with captured output as text.

    Args:
        obeying: whether files' permissions hold for it, as for others than root.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("output", "errors")]
        request = {
            "argv": line[1:],
            "outputs": [str(file) for file in outputs],
            "environment": dict(os.environ) if env is None else env,
            "folder": str(cwd or Path.cwd()),
            "obeying": obeying,
        }
        code = _server().answer(request, timeout)
        return subprocess.CompletedProcess(line, code, *(file.read_text(errors="replace") for file in outputs))


class _Server:
    """The process that is copied, at its other end."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process: subprocess.Popen[bytes] = subprocess.Popen([sys.executable, __file__], bufsize=0, **pipes)  # type: ignore[call-overload]
        atexit.register(self.end)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def answer(self, request: dict[str, Any], timeout: float) -> int:
        """The exit code of a command, below 0 if a signal ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        pid = int(self.process.stdout.readline())
        try:
            ended, _, _ = select.select([self.process.stdout], [], [], timeout)
        except BaseException:
            ended = []
            raise
        finally:
            if not ended:
                os.kill(pid, signal.SIGKILL)
                self.process.stdout.readline()
        if not ended:
            raise subprocess.TimeoutExpired(request["argv"], timeout)
        return int(self.process.stdout.readline())


@cache
def _server() -> _Server:
    return _Server()


def serve() -> None:
    """Fork for each request that comes; return in the process that is to run the command."""
    from permissions import obey_permissions_at_once

    sys.path[0] = str(ROOT)
    from search.execution.environment import set_environment

    before = dict(os.environ)
    set_environment(None)
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if module.name not in KERNELS:
                importlib.import_module(module.name)
    for name in LATER:
        importlib.import_module(name)
    by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    gc.collect()
    gc.freeze()  # what is here is not looked at again in each copy
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the one hears who sends the requests
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            request = json.loads(line)
            if request.pop("obeying"):
                obey_permissions_at_once()
            become(**request, by_imports=by_imports)
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)


def become(
    argv: list[str], outputs: list[str], environment: dict[str, str], folder: str, by_imports: dict[str, str]
) -> None:
    """Take the place of a Python that was started with `argv`, and has imported everything since."""
    for number, name in enumerate((os.devnull, *outputs)):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(by_imports | environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)


def run_script() -> int:
    """What `python SCRIPT` or `python -c CODE` would do, up to its exit code."""
    try:
        if sys.argv[0] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave() -> None:
    """End without the seconds that Python takes to free all modules."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_codes.pop())


if __name__ == "__main__":
    exit_codes: list[int] = []
    atexit.register(leave)  # the first to be registered is the last to be called
    serve()
    exit_codes.append(run_script())
