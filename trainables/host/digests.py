"""Which code, on which torch and device, gave a result: found from the imports, hashed as syntax trees.

A result's code is its own module and all of this project's that it imports, wherever in them that stands; what is
imported for type checkers alone does not run. Neither comments nor docstrings count. Importing this costs nothing.
"""

import ast
import os
import platform
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from trainables.cache import content_key

ROOT = Path(__file__).resolve().parents[2]  # what the three packages lie in
PACKAGES = ("model", "trainables", "search")
# Where each kind of result is made.
TOKENS, TABLE, PHASE1, TRIAL = (
    "trainables.inputs.corpus",
    "trainables.inputs.embeddings",
    "trainables.phases.shared_phase1",
    "trainables.two_phase",
)
# No part of a result's code: all that it decides, which context each layer reads, is in the configuration's hash.
IN_THE_CONFIG = "model.modes"
# Variables by which libraries choose how they compute.
NUMERICS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a trial's figures depend on beside its configuration and inputs."""

    code: str  # `code_digest` of `TRIAL`
    torch: str  # version, the build's suffix included
    device: str  # `device_model`
    compute: str  # `model.ops.compute.Compute` in words: kernels and precision
    threads: int = 0  # of a CPU, whose last digits depend on them; 0 on a GPU, and where earlier versions kept none

    @property
    def digest(self) -> str:
        """Equal where the same configuration on the same inputs gives the same figures."""
        content = asdict(self)
        if not self.threads:
            del content["threads"]
        return content_key(content)

    @classmethod
    def of(cls, device: Any, compute: Any) -> "Provenance":
        """Of a trial in this process.

        Args:
            device: a `torch.device` or its name.
            compute: the device's `Compute`.
        """
        import torch

        threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 0
        made = {"code": code_digest(TRIAL), "torch": torch.__version__, "device": device_model(device)}
        return cls(**made, compute=str(compute), threads=threads)


def device_model(device: Any) -> str:
    """The processor or GPU as its maker calls it, with what else the last digits depend on there."""
    import torch

    if torch.device(device).type == "cuda":
        named = str(torch.cuda.get_device_name(device))
    else:
        named = f"{processor()} {torch.backends.cpu.get_cpu_capability()}"
    settings = [f"{name}={os.environ[name]}" for name in NUMERICS if name in os.environ]
    return " ".join([named, *settings])


@cache
def processor() -> str:
    """This machine's CPU."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named.group(1).strip() if named else platform.processor() or platform.machine()


@cache
def code_digest(module: str, root: Path = ROOT) -> str:
    """Names the code of `module` and all that it imports of this project but `IN_THE_CONFIG`, 16 hex digits.

    Args:
        root: the folder that the packages lie in.
    """
    return content_key({name: _meaning(root, name) for name in modules(module, root) if name != IN_THE_CONFIG})


@cache
def own_code() -> str:
    """Names all code of a trial, so that two processes know whether they would do the same."""
    return content_key({name: _meaning(ROOT, name) for name in modules(TRIAL)})


def modules(module: str, root: Path = ROOT) -> list[str]:
    """`module` and all of this project's that it imports, directly or through others, sorted."""
    found: set[str] = set()
    open_ones = {module}
    while open_ones:
        name = open_ones.pop()
        if name in found or _file(root, name) is None:
            continue
        found.add(name)
        if name in PACKAGES:  # it runs before all in it, but what it imports only where it is called is for others
            continue
        open_ones |= _imports(root, name) | {name.rpartition(".")[0]}  # a package runs before what is in it
    return sorted(found)


def _file(root: Path, module: str) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    place = root.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _tree(root: Path, module: str) -> ast.Module:
    file = _file(root, module)
    assert file is not None
    return ast.parse(file.read_text(encoding="utf-8"))


def _imports(root: Path, module: str) -> set[str]:
    file = _file(root, module)
    package = module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    open_nodes: list[ast.AST] = [_tree(root, module)]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            open_nodes += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        else:
            open_nodes += ast.iter_child_nodes(node)
    return found


def _meaning(root: Path, module: str) -> list[str]:
    """The module's syntax tree without docstrings; with it a C source of the same name, without comments."""
    tree = _tree(root, module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = body[1:]
    meaning = [ast.dump(tree)]
    file = _file(root, module)
    assert file is not None
    source = file.with_suffix(".c")
    if source.is_file():
        text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", source.read_text(encoding="utf-8"), flags=re.DOTALL)
        meaning.append(" ".join(text.split()))
    return meaning
