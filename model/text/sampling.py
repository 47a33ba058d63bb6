"""How a next token is drawn. Importing this costs nothing: no torch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is continued. The temperature comes first, then `top_k`, then `top_p` of what that left."""

    max_tokens: int = 200
    temperature: float = 1.0  # divides the logits; 0: always the most likely token
    top_k: int | None = None  # the k most likely tokens only; None: all
    top_p: float = 1.0  # the fewest tokens that have this probability together; 1: all
    seed: int = 0  # the same seed draws the same tokens

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("top_k", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value!r}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number of at least 0, not {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        if self.seed >= 1 << 63:
            raise ValueError(f"seed must be below 2^63, not {self.seed!r}")

    def draw(self, logits: "Tensor", uniform: float) -> int:
        """A token.

        Args:
            logits: of all tokens; -inf is never drawn.  # (V,)
            uniform: a random number from 0 to 1, 1 excluded: the same one gives the same token on every device.
        """
        if self.temperature == 0:
            return int(logits.argmax())
        # in fp64 and from the largest on: a tiny temperature must not overflow
        scaled = (logits.double() - logits.max()) / self.temperature
        ordered, tokens = scaled.sort(descending=True, stable=True)
        sums = ordered[: self.top_k].softmax(dim=0).cumsum(dim=0)
        kept = int((sums < self.top_p * sums[-1]).sum()) + 1  # up to the one that reaches it
        sums = sums[: min(kept, len(sums))]
        index = int((sums <= uniform * sums[-1]).sum())
        return int(tokens[min(index, len(sums) - 1)])
