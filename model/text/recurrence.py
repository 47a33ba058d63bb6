"""The model one token at a time: the textbook's recurrence, for continuing a text.

All it has to remember of what went before is the last final context. It reads the layers' own parameters: laying
weights out for many positions at once (`model.ops.passes`) would cost more than a token does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.language_model import LanguageModel
from model.layers import ContextLayer, TokenLayer


def _layer(layer: ContextLayer | TokenLayer, x: Tensor, inputs: Tensor) -> Tensor:
    """`LayerNorm(x + GELU(W inputs + b))`."""
    product = F.linear(inputs, layer.weight, layer.bias)
    # F.gelu wakes all threads of a CPU even for one row: on busy cores it waits milliseconds for them
    active = 0.5 * product * (1 + torch.erf(product * 0.5**0.5))
    out: Tensor = layer.norm(x + active)
    return out


def zero_state(model: LanguageModel) -> Tensor:
    """The final context before a stream's first token.  # (D,)"""
    return model.table.new_zeros(model.config.context_dim)


@torch.no_grad()
def advance(model: LanguageModel, state: Tensor, token: int) -> list[Tensor]:
    """The contexts at one more token.

    Args:
        state: the final context at the token before.  # (D,)

    Returns:
        Every context layer's output; the last one is the next `state`.  # C times (D,)
    """
    outputs, embedded = [], model.embedded[token]
    for layer in model.context_block:
        state = _layer(layer, state, torch.cat([state, embedded]))
        outputs.append(state)
    return outputs


@torch.no_grad()
def step(model: LanguageModel, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """Read one more token.

    Args:
        state: the final context at the token before.  # (D,)

    Returns:
        The next token's logits, and the next `state`.  # (V,), (D,)
    """
    contexts = advance(model, state, token)
    x = model.embedded[token]
    for layer, read in zip(model.token_block, model.config.reads, strict=True):
        inputs = x if read is None else torch.cat([state if read.shift else contexts[read.layer - 1], x])
        x = _layer(layer, x, inputs)
    return model.table @ x, contexts[-1]
