"""What a process that was granted GPUs computes on."""

import pytest
import torch

from trainables.host.devices import choose_device


def test_without_gpus_it_is_the_cpu() -> None:
    assert choose_device(0) == "cpu"


@pytest.mark.parametrize(("gpus", "share"), [(0.5, [0.5]), (1.0, []), (2.0, [])])
def test_part_of_a_gpu_is_that_part_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, gpus: float, share: list[float]
) -> None:
    held: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", held.append)
    precision = torch.get_float32_matmul_precision()
    assert choose_device(gpus) == "cuda"
    torch.set_float32_matmul_precision(precision)
    assert held == share


def test_a_gpu_that_this_pytorch_cannot_use_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="install a CUDA build, or train on the CPU with --gpus-per-trial 0"):
        choose_device(1)
