"""One random generator per (seed, purpose), so that the order in which things are built never matters."""

import hashlib

import torch


def seed_of(seed: int, purpose: str) -> int:
    """63 bits for one purpose of one seed."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seeded(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose of one seed.

    Streams of the same (seed, purpose) differ between CPU and CUDA, as torch's generators do.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(seed_of(seed, purpose))
    return generator
