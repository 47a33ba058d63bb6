"""How much is computed at once."""

import re
from dataclasses import dataclass

# How the allocator, CUDA and Triton, and CUDA's libraries say it.
NO_MEMORY = ("out of memory", "_STATUS_ALLOC_FAILED")
ADVICE = re.compile(r" (Process \d|Including non-PyTorch|Of the allocated|If reserved)")  # where the allocator's begins


def out_of_memory(error: BaseException | None) -> str | None:
    """The sentences that say so of an error that a device's full memory is behind; None if it is not.

    One that ends the recording of a CUDA graph is followed by another, about the recording: so all are looked at.
    """
    while error is not None:
        said = str(error).strip()
        if any(text in said for text in NO_MEMORY):
            return ADVICE.split(said.split("\n")[0])[0]
        error = error.__cause__ or error.__context__
    return None


@dataclass(frozen=True)
class Chunks:
    """Limits of what is held at once, by memory or by a cache; they change nothing but the last digits.

    The defaults are a CPU's.
    """

    activation_bytes: int = 1 << 22  # of one activation of a Phase-1 pass: what a CPU's cache holds
    context_rows: int = 262_144  # positions whose intermediate context layers are computed together
    logits: int = 1 << 26  # on a GPU enough rows for full-speed products
    eval_rows: int = 8_192  # positions scored together

    @classmethod
    def of(cls, device_type: str) -> "Chunks":
        """Those of a `torch.device.type`."""
        return cls(activation_bytes=1 << 30, logits=1 << 29) if device_type == "cuda" else cls()

    def halved(self) -> "Chunks":
        """Half of each, for a device whose memory was too small."""
        return Chunks(self.activation_bytes // 2, self.context_rows // 2, self.logits // 2, self.eval_rows // 2)
