"""The operators of `model.ops.plain` that a CPU spends its time in, as C, built at first use: fp32 rows.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.ops.build_cache import build_folder, is_own
from model.ops.plain import BlockGradient, Noise, Settled, Sums, TokenSums

__all__ = [
    "Noise", "TokenSums", "adam", "head_gradient", "join", "residual_norm", "residual_norm_backward", "settling_norm",
]  # fmt: skip
log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
# For this very CPU; sums may be reordered only where the source says so, and nothing but this library is affected.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
if platform.machine() == "x86_64":
    FLAGS.append("-mprefer-vector-width=512")  # compilers' default of 256 took 1.3 times as long
# Of each operator the letters of its arguments, the number of threads first, and of its result: n a size, x a number,
# y a double, f, d and i rows of fp32, fp64 and int64, p an address.
SIGNATURES = {
    "join": ("nnnnffif", ""),
    "residual_norm": ("nnnnpffifffff", ""),
    "residual_norm_backward": ("nnnfffffffff", ""),
    "settle": ("nnnxffdd", "n"),
    "softmax_gradient": ("nnnxfif", ""),
    "norm": ("nnf", "y"),
    "adam": ("nnxxxxxxffff", ""),
}
C_TYPES: dict[str, Any] = {"n": ctypes.c_int64, "x": ctypes.c_float, "y": ctypes.c_double}
DTYPES = {"f": torch.float32, "d": torch.float64, "i": torch.int64}


def _cpu() -> str:
    """What `-march=native` depends on: builds must not meet another CPU through a shared home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.platform() + platform.processor()
    lines = cpuinfo.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _is_whole(library: Path) -> bool:
    """Whether a library is there as this user built it: one that a crash cut off would end the process loading it."""
    if not library.is_file() or not is_own(library):
        return False
    content = library.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _build(compiler: str, threads: str) -> Path:
    """The shared library, built unless it lies there.

    Args:
        threads: the compiler's option for OpenMP's pragmas.

    Raises:
        OSError: the compiler fails, or the disk takes no more.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\0".join((SOURCE.read_text(), version, *FLAGS, threads, _cpu())).encode()).hexdigest()[:16]
    library = build_folder() / f"native-{key}.so"
    if _is_whole(library):
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        compiled, made = Path(scratch) / "native.o", Path(scratch) / library.name
        for command in (
            [compiler, *FLAGS, threads, "-c", str(SOURCE), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(made), "-lm"],  # the threads' functions are torch's
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())  # what lies behind a library's end is not loaded
        made.chmod(0o700)
        made.replace(library)  # at once: several processes may build it at the same time
    return library


def _threaded_or_not(compiler: str) -> ctypes.CDLL | None:
    """The library, on the threads of torch's pool where torch has an OpenMP that this compiler's code can call."""
    for threads in ("-fopenmp", "-fopenmp-simd"):
        try:
            return ctypes.CDLL(str(_build(compiler, threads)))
        except OSError as error:
            reason = error
    log.warning("the C operators cannot be built, torch's are used: %s", reason)
    return None


@functools.cache
def load() -> ctypes.CDLL | None:
    """The operators, or None, with a line in the log, where they cannot be built."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        log.info("no C compiler: torch's operators are used")
        return None
    library = _threaded_or_not(compiler)
    if library is None:
        return None
    for name, (arguments, result) in SIGNATURES.items():
        getattr(library, name).argtypes = [C_TYPES.get(letter, ctypes.c_void_p) for letter in arguments]
        getattr(library, name).restype = C_TYPES.get(result)
    return library


def _call(name: str, *arguments: Tensor | float | None) -> Any:
    """Call an operator with the number of threads, and sizes, numbers and tensors."""
    library = load()
    assert library is not None
    passed: list[float | None] = [torch.get_num_threads()]
    for letter, value in zip(SIGNATURES[name][0][1:], arguments, strict=True):
        if isinstance(value, Tensor):
            assert value.dtype == DTYPES[letter], f"{name} does not take {value.dtype}"
            assert value.is_contiguous(), f"{name} takes contiguous rows"
            passed.append(value.data_ptr())
        else:
            passed.append(value)
    return getattr(library, name)(*passed)


class Saved(NamedTuple):
    """What `residual_norm_backward` needs of a forward."""

    out: Tensor
    normed: Tensor
    slope: Tensor  # of the GELU
    rstd: Tensor


def join(left: Tensor, right: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `model.ops.plain.join`; the second is a view of the first."""
    rows, width = left.shape
    joined = left.new_empty(rows, width + right.shape[1])
    _call("join", rows, width, right.shape[1], left, right, tokens, joined)
    return joined, joined[:, width:]


def residual_norm(
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int
) -> tuple[Tensor, Saved]:
    """As `model.ops.plain.residual_norm`; the rows of `x` may lie apart."""
    assert x.dtype == torch.float32, f"residual_norm takes fp32 rows, not {x.dtype}"
    assert x.stride(1) == 1, "residual_norm takes contiguous rows"
    out, normed, rstd = torch.empty_like(product), torch.empty_like(product), product.new_empty(len(product))
    _call(
        "residual_norm",
        len(product),
        size,
        x.stride(0),
        x.data_ptr(),
        product,
        term,
        tokens,
        weight,
        bias,
        out,
        normed,
        rstd,
    )
    return out, Saved(out, normed, product, rstd)


def residual_norm_backward(
    grad: Tensor | BlockGradient, saved: Saved, weight: Tensor, bias: Tensor, size: int, want_x: bool = True,
    into: Sums | None = None,
) -> tuple[Tensor, Tensor, Sums]:  # fmt: skip
    """As `model.ops.plain.residual_norm_backward`; `grad` and `saved` are overwritten."""
    if isinstance(grad, BlockGradient):
        grad = grad.dense(saved.out)
    sums = into or (torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(weight))
    parts = weight.new_empty(torch.get_num_threads(), 3, size)
    _call("residual_norm_backward", len(grad), size, grad, saved.normed, saved.slope, saved.rstd, weight, parts, *sums)
    return grad, saved.slope, sums


def settling_norm(
    state: Tensor, num_blocks: int, threshold: float,
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int,
) -> tuple[Settled, Saved]:  # fmt: skip
    """As `model.ops.plain.settling_norm`."""
    out, saved = residual_norm(x, product, term, tokens, weight, bias, size)
    length = len(out) // num_blocks
    mean = torch.empty(num_blocks, size, dtype=torch.float64)
    distance = torch.empty(num_blocks, dtype=torch.float64)  # squared, summed over a block
    still = sum(
        _call(
            "settle",
            length,
            size,
            threshold * size,
            state[i * length :],
            out[i * length :],
            mean[i],
            distance[i:],
        )
        for i in range(num_blocks)
    )
    return Settled(torch.tensor(still), mean.float(), distance.sqrt().float()), saved


def head_gradient(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, count: int, losses: Tensor, gradient: Tensor
) -> None:
    """As `model.ops.plain.head_gradient`; there are no columns from `vocab_size` on."""
    assert len(weight) == vocab_size
    logits = hidden @ weight.T
    _call("softmax_gradient", len(logits), vocab_size, 1 / count, logits, targets, losses)
    torch.mm(logits, weight, out=gradient)


def adam(
    values: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: int, learning_rate: float, grad_clip: float,
    betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """One step of Adam in place, on a gradient whose norm is cut to `grad_clip`.

    Args:
        values, grad, mean, square: the parameters, their gradient and both its moments.  # (P,) each
        step: from 1.
    """
    norm = _call("norm", len(grad), grad)
    # as clip_grad_norm_ has it; a norm that is not a number must spoil the weights, not be cut away
    shrink = 1.0 if norm + 1e-6 <= grad_clip else grad_clip / (norm + 1e-6)
    rate, root = learning_rate / (1 - betas[0] ** step), (1 - betas[1] ** step) ** 0.5
    _call("adam", len(values), shrink, rate, root, 1 - betas[0], 1 - betas[1], eps, values, grad, mean, square)
