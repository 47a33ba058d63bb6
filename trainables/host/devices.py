"""What a run computes on. No torch until it is asked."""


def choose_device(gpus: float, for_cpu: str = "--gpus-per-trial 0") -> str:
    """The device of a process that was granted `gpus` GPUs: the first visible one, or the CPU.

    Args:
        for_cpu: the option that chooses the CPU.

    Raises:
        ValueError: a GPU was granted that this PyTorch cannot use.
    """
    import torch

    if gpus == 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            f"this machine has a GPU, but this PyTorch ({torch.__version__}) cannot use it: "
            f"install a CUDA build, or train on the CPU with {for_cpu}"
        )
    if gpus < 1:  # Ray's fractions are bookkeeping only: hold the trial to its share of the memory
        torch.cuda.set_per_process_memory_fraction(gpus)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return "cuda"


def hardware(gpus: float) -> str:
    """What a trial computes on, in a few words."""
    import os
    import platform

    import torch

    if gpus:
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
