"""Runs the commands of the READMEs as they stand: every line of a block marked `sh`, in a copy of this checkout.

    python tests/readmes.py [FILE ...]

Without files: README.md and those of the packages and of the tests. STUDY stands for the study that was run last. What
installs, tests or checks is left to `.ci/run`, which does it anyway; a server is ended as soon as it listens.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "model/README.md", "trainables/README.md", "search/README.md", "tests/README.md")
ELSEWHERE = ("pip ", "pytest", "ruff ", "python tests/")  # commands that `.ci/run` or a test runs
LISTENS = "MLflow on http"
LIMIT = 600.0  # seconds of one command


def commands(text: str) -> Iterator[str]:
    """The lines of blocks marked `sh`, those that a backslash continues as one."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith(ELSEWHERE):
                yield line


def run(line: str, folder: Path) -> str:
    """Run one command; what it printed.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    print(f"$ {line}", flush=True)
    began, printed = time.monotonic(), []
    with subprocess.Popen(
        ["bash", "-c", f"exec {line}" if "&&" not in line else line],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for said in process.stdout:
            printed.append(said)
            if said.startswith(LISTENS):
                process.terminate()
                process.wait(timeout=60)
                return "".join(printed)
            if time.monotonic() - began > LIMIT:
                process.kill()
    if process.returncode != 0:
        print("".join(printed))
        raise SystemExit(f"{shlex.quote(line)} ended with exit code {process.returncode}")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return "".join(printed)


def main() -> None:
    """Run all of them, in order."""
    files = sys.argv[1:] or READMES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkout"
        left_out = shutil.ignore_patterns(".git", "mlruns", "__pycache__", ".*_cache", ".venv")
        shutil.copytree(ROOT, folder, ignore=left_out)
        study = "STUDY"
        for file in files:
            for line in commands((ROOT / file).read_text(encoding="utf-8")):
                printed = run(line.replace("STUDY", study).replace("/tmp/", f"{scratch}/"), folder)
                if (started := re.search(r"^study (\S+): ", printed, re.MULTILINE)) and "--mlruns" not in line:
                    study = started.group(1)


if __name__ == "__main__":
    main()
