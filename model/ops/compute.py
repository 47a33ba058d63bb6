"""How a device computes: which kernels, which operand precision, how much at once.

Chosen once per attempt at a run, never per call.
"""

import importlib.util
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from model.ops.chunks import Chunks

ALIGNMENT = 16  # rows of a multiple of 16 entries: what fast matrix products and 16-byte loads need


@dataclass(frozen=True)
class Compute:
    """Kernels, precision and sizes of all training passes on one device."""

    fused: bool = False  # Triton kernels (model.ops.fused)
    native: bool = False  # C operators (model.ops.native); if neither, torch's own (model.ops.plain)
    bf16: bool = False  # operands of products and kept activations; sums, weights and Adam stay in fp32
    tf32: bool = False  # the device may round other fp32 operands to TF32, where torch is told so
    chunks: Chunks = field(default_factory=Chunks)  # no part of the name: results are the same

    @classmethod
    def of(cls, device: torch.device | str) -> "Compute":
        """The fastest that `device` has: NVIDIA's GPUs of compute capability 8.0 (2020) or more have bf16 products in
        hardware and are what Triton is made for; older ones get torch's operators in fp32, CPUs C operators where there
        is a compiler.
        """
        if torch.device(device).type == "cpu":
            from model.ops import native

            return cls(native=native.load() is not None)
        if torch.cuda.get_device_capability(device) < (8, 0):
            return cls(chunks=Chunks.of("cuda"))
        # Triton builds a launcher for each kernel with a C compiler: what CC names, there or not, else one of these
        named = os.environ.get("CC")
        compilers = ("clang", "gcc") if named is None else (named,)
        kernels = any(map(shutil.which, compilers)) and importlib.util.find_spec("triton") is not None
        return cls(fused=kernels, bf16=kernels, tf32=True, chunks=Chunks.of("cuda"))

    @property
    def ops(self) -> Any:
        """The operators: `model.ops.fused`, `model.ops.native` or `model.ops.plain`, which have the same functions."""
        if self.fused:
            from model.ops import fused

            return fused
        if self.native:
            from model.ops import native

            return native
        from model.ops import plain

        return plain

    def full(self) -> "Compute":
        """The same kernels on fp32 operands."""
        return replace(self, bf16=False)

    def width(self, size: int) -> int:
        """Columns that hold `size` entries of a kept activation; those behind `size` are zero."""
        return -(-size // ALIGNMENT) * ALIGNMENT if self.fused else size

    def operand(self, tensor: Tensor) -> Tensor:
        """`tensor` as an operand of products."""
        return tensor.to(torch.bfloat16) if self.bf16 else tensor

    def sums_dtype(self, operand: Tensor) -> torch.dtype:
        """Of sums and losses over `operand`s."""
        return torch.float32 if self.bf16 else operand.dtype

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The matrix product of two operands, not rounded to bf16.  # (n, k), (k, m) -> (n, m)"""
        if self.bf16 and left.is_cuda:
            return torch.mm(left, right, out_dtype=torch.float32)
        if self.bf16:  # only where the kernels are interpreted, in tests
            return left.float() @ right.float()
        return left @ right

    def product_into(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """`product`, written to `out` (n, m), of the dtype of sums."""
        if self.bf16:
            out.copy_(self.product(left, right))
        else:
            torch.mm(left, right, out=out)

    def __str__(self) -> str:
        kernels = "Triton kernels" if self.fused else "C operators" if self.native else "torch operators"
        return f"{'bf16' if self.bf16 else 'tf32' if self.tf32 else 'fp32'} products, {kernels}"


def usable_device(device: str | None) -> torch.device:
    """The device of that name; without one the GPU where there is one, else the CPU.

    Raises:
        ValueError: it is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).strip().partition(chr(10))[0]}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, not {device!r}")
    return found
