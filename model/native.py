"""The operators of `model.plain` that a CPU spends its time in, as C, built at first use: fp32 rows.

A small model's step is mostly such operators: torch's own read and write each row many times over.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model import plain
from model.plain import BlockGradient, Noise, TokenSums, divide_rows_, spread

__all__ = [
    "Noise", "TokenSums", "divide_rows_", "logit_gradient", "residual_norm", "residual_norm_backward", "settling_norm",
    "spread",
]  # fmt: skip
log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
# For this very CPU; sums may be reordered only where the source says so, and nothing but this library is affected.
FLAGS = ["-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
if platform.machine() == "x86_64":
    FLAGS.append("-mprefer-vector-width=512")  # compilers' default of 256 took 1.3 times as long


def _folder() -> Path:
    """Where this user's builds are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "two-phase-search"


def _cpu() -> str:
    """What `-march=native` depends on: builds must not meet another CPU through a shared home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.platform() + platform.processor()
    lines = cpuinfo.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _build(compiler: str) -> Path:
    """The shared library, built unless it lies there.

    Raises:
        OSError: the compiler fails, or the folder cannot be written to.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\0".join((SOURCE.read_text(), version, *FLAGS, _cpu())).encode()).hexdigest()[:16]
    library = _folder() / f"native-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made = Path(scratch) / library.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        made.replace(library)  # at once: several processes may build it at the same time
    return library


@functools.cache
def load() -> ctypes.CDLL | None:
    """The operators, or None, with a line in the log, where they cannot be built."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        log.info("no C compiler: torch's operators are used")
        return None
    try:
        library = ctypes.CDLL(str(_build(compiler)))
    except OSError as error:
        log.warning("the C operators cannot be built, torch's are used: %s", error)
        return None
    for name, pointers in (("residual_norm", 9), ("residual_norm_backward", 8), ("softmax_gradient", 4)):
        getattr(library, name).argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * pointers
        getattr(library, name).restype = None
    return library


def _call(name: str, rows: int, columns: int, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None:
            assert tensor.dtype in (torch.float32, torch.int64), f"{name} takes fp32 rows, not {tensor.dtype}"
            assert tensor.is_contiguous(), f"{name} takes contiguous rows"
    library = load()
    assert library is not None
    getattr(library, name)(rows, columns, *(None if t is None else t.data_ptr() for t in tensors))


class Saved(NamedTuple):
    """What `residual_norm_backward` needs of a forward."""

    out: Tensor
    normed: Tensor
    slope: Tensor  # of the GELU
    rstd: Tensor


def residual_norm(
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int
) -> tuple[Tensor, Saved]:
    """As `model.plain.residual_norm`."""
    out, normed, rstd = torch.empty_like(product), torch.empty_like(product), product.new_empty(len(product))
    _call("residual_norm", len(product), size, x, product, term, tokens, weight, bias, out, normed, rstd)
    return out, Saved(out, normed, product, rstd)


def residual_norm_backward(
    grad: Tensor | BlockGradient, saved: Saved, weight: Tensor, bias: Tensor, size: int, want_x: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `model.plain.residual_norm_backward`; `grad` and `saved` are overwritten."""
    if isinstance(grad, BlockGradient):
        grad = grad.dense(saved.out)
    sums = [torch.empty_like(weight) for _ in range(3)]
    _call("residual_norm_backward", len(grad), size, grad, saved.normed, saved.slope, saved.rstd, weight, *sums)
    return grad, saved.slope, sums[0], sums[1], sums[2]


def settling_norm(
    state: Tensor, threshold: float,
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int,
) -> tuple[Tensor, Saved]:  # fmt: skip
    """As `model.plain.settling_norm`."""
    out, saved = residual_norm(x, product, term, tokens, weight, bias, size)
    return plain.settle(state, out, threshold * size), saved


def logit_gradient(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `model.plain.logit_gradient`; there are no columns from `vocab_size` on."""
    assert len(weight) == vocab_size
    logits = hidden @ weight.T
    losses, sums = logits.new_empty(len(logits)), logits.new_empty(len(logits))
    _call("softmax_gradient", len(logits), vocab_size, logits, targets, losses, sums)
    return logits, losses, sums
