import importlib.util
import shutil

import pytest
import torch

from model.ops import native, plain
from model.ops.compute import Compute


@pytest.mark.parametrize(
    ("capability", "triton", "shown"),
    [
        ((9, 0), True, "bf16 products, Triton kernels"),
        ((8, 0), False, "tf32 products, torch operators"),
        ((7, 5), True, "fp32 products, torch operators"),
    ],
)
def test_what_a_gpu_gets(
    capability: tuple[int, int], triton: bool, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert str(Compute.of("cuda")) == shown
    monkeypatch.setattr(shutil, "which", lambda name: None)  # Triton cannot build its launchers
    assert str(Compute.of("cuda")).endswith("torch operators")


def test_what_a_cpu_gets() -> None:
    compute = Compute.of("cpu")
    assert compute == Compute(native=native.load() is not None)
    assert str(Compute(native=True)) == "fp32 products, C operators"
    assert Compute(native=True).ops is native
    assert Compute().ops is plain
    assert compute.width(500) == 500
    rows = torch.randn(3, 4)
    assert compute.operand(rows) is rows


def test_operands_are_padded_to_whole_loads_and_full_precision_keeps_the_width() -> None:
    compute = Compute(fused=True, bf16=True)
    assert [compute.width(n) for n in (1, 16, 500)] == [16, 16, 512]
    assert compute.full().width(500) == 512
    assert compute.operand(torch.randn(2)).dtype == torch.bfloat16
    assert compute.full().operand(torch.randn(2)).dtype == torch.float32
