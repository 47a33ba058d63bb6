"""Forward and backward passes of both blocks, written out: what training runs instead of autograd.

A pass lays a block's weights out as operands of one device (`Compute`), keeps what its backward needs, and sums
gradients into the parameters' `.grad`. `model.layers` holds the parameters; both compute the same functions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import ContextBlock, TokenBlock
from model.ops.compute import Compute
from model.ops.plain import BlockGradient, Settled


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class ContextPass:
    """One state of a ContextBlock's weights, for any number of passes over positions.

    The token half `A_e e + b` of a layer takes V values, so it is a table (V, W), gathered by token; its gradient is
    summed by token and sent on to `A_e` once, in `finish`.
    """

    def __init__(self, block: ContextBlock, embedded: Tensor, compute: Compute) -> None:
        """Lay the weights out.

        Args:
            embedded: normalised embedding rows, an operand.  # (V, E)
        """
        self.block, self.embedded, self.compute = block, embedded, compute
        self.width = compute.width(block.context_dim)
        size = block.context_dim
        pad = self.width - size
        with torch.no_grad():
            self.hidden, self.terms, self.norms = [], [], []
            for layer in block:
                on_hidden, on_token = layer.halves()
                self.hidden.append(compute.operand(F.pad(on_hidden, (0, pad, 0, pad))))  # (W, W)
                weight = compute.operand(F.pad(on_token, (0, 0, 0, pad)))
                bias = compute.operand(F.pad(layer.bias, (0, pad)))
                self.terms.append(torch.addmm(bias, embedded, weight.T))  # (V, W)
                self.norms.append((F.pad(layer.norm.weight, (0, pad)), F.pad(layer.norm.bias, (0, pad)), size))

    @torch.no_grad()
    def forward(self, previous: Tensor, tokens: Tensor, depth: int | None = None) -> list[Tensor]:
        """Every layer's output at n positions, the last one the new final context.

        Args:
            previous: the final context each position starts from.  # (n, W)
            tokens: (n,)
            depth: the first layers only.

        Returns:
            C tensors, or `depth`.  # each (n, W)
        """
        outputs, x = [], previous
        for hidden, term, norm in list(zip(self.hidden, self.terms, self.norms, strict=True))[:depth]:
            x, _ = self.compute.ops.residual_norm(x, x @ hidden.T, term, tokens, *norm)
            outputs.append(x)
        return outputs

    @torch.no_grad()
    def advance(
        self, state: Tensor, num_blocks: int, threshold: float, previous: Tensor, tokens: Tensor
    ) -> tuple[Settled, list[Any]]:
        """One step of the fixed-point iteration at n positions: `state` (n, W) becomes the new final contexts.

        Args:
            num_blocks: loss blocks, equally long.
            threshold: a mean squared change of a position under this counts as none.
            previous, tokens: as in `forward`.

        Returns:
            What it did to the blocks, and what `backward` needs.
        """
        tape: list[Any] = []
        layers = list(zip(self.hidden, self.terms, self.norms, strict=True))
        x = previous
        for hidden, term, norm in layers[:-1]:
            out, saved = self.compute.ops.residual_norm(x, x @ hidden.T, term, tokens, *norm)
            tape.append((x, saved))
            x = out
        hidden, term, norm = layers[-1]
        settled, saved = self.compute.ops.settling_norm(
            state, num_blocks, threshold, x, x @ hidden.T, term, tokens, *norm
        )
        tape.append((x, saved))
        return settled, tape

    def begin(self) -> None:
        """Set all gradients to zero; the parameters have some (`trainables.phases.optimizer.FlatAdam` sees to that)."""
        for parameter in self.block.parameters():
            _grad(parameter).zero_()
        dtype = self.compute.sums_dtype(self.embedded)
        self.hidden_grads = [torch.zeros_like(h, dtype=dtype) for h in self.hidden]
        self.term_grads = [torch.zeros_like(t, dtype=dtype) for t in self.terms]

    @torch.no_grad()
    def backward(self, grad: BlockGradient | Tensor, tape: list[Any], sums: Any) -> None:
        """Add one pass's gradients.

        Args:
            grad: of the final contexts.
            sums: the pass's `ops.TokenSums`.
        """
        for i, layer in reversed(list(enumerate(self.block))):
            x, saved = tape.pop()
            grad_x, grad_product, (on_weight, on_bias, _) = self.compute.ops.residual_norm_backward(
                grad, saved, *self.norms[i], want_x=i > 0
            )
            _grad(layer.norm.weight).add_(on_weight)
            _grad(layer.norm.bias).add_(on_bias)
            self.hidden_grads[i] += self.compute.product(grad_product.T, x)
            sums.add_to(self.term_grads[i], grad_product)
            if i > 0:
                grad = grad_x.addmm_(grad_product, self.hidden[i])

    @torch.no_grad()
    def finish(self) -> None:
        """Bring the summed gradients to the parameters."""
        size = self.block.context_dim
        for layer, hidden, term in zip(self.block, self.hidden_grads, self.term_grads, strict=True):
            _grad(layer.bias).add_(term.sum(dim=0)[:size])
            _grad(layer.weight)[:, :size] += hidden[:size, :size]
            on_token = self.compute.product(self.compute.operand(term).T, self.embedded)  # (W, E): aligned, and so fast
            _grad(layer.weight)[:, size:] += on_token[:size]


class TokenPass:
    """A TokenBlock's weights as operands; after a step of the parameters they are laid out anew by `reload`."""

    def __init__(self, block: TokenBlock, embedded: Tensor, compute: Compute) -> None:
        """Lay the weights out; the parameters may be stepped afterwards, not replaced.

        Args:
            embedded: normalised embedding rows, an operand.  # (V, E)
        """
        self.block, self.embedded, self.compute, self.size = block, embedded, compute, block.context_dim
        self.width = compute.width(self.size)
        self.weights: list[Tensor] = []
        self.reload()
        self.live = all(w is layer.weight for w, layer in zip(self.weights, block, strict=True))

    @torch.no_grad()
    def reload(self) -> None:
        """Take over the parameters' values."""
        if self.weights and self.live:
            return
        pad, self.weights = self.width - self.size, []
        for layer in self.block:
            weight = self.compute.operand(layer.weight)
            if layer.reads_context and pad:
                on_context, on_token = weight.split([self.size, weight.shape[1] - self.size], dim=1)
                weight = torch.cat([F.pad(on_context, (0, pad)), on_token], dim=1)
            self.weights.append(weight)  # (E, W+E) or (E, E)

    @torch.no_grad()
    def forward(self, tokens: Tensor, contexts: Sequence[Tensor | None], tape: list[Any] | None = None) -> Tensor:
        """The hidden state whose product with the tied table is the logits of the next token.

        Args:
            tokens: (n,)
            contexts: what each token layer reads; the first one reads some.  # T times (n, W) or None
            tape: where to keep what `backward` needs.
        """
        assert contexts[0] is not None
        x: Tensor
        inputs, x = self.compute.ops.join(contexts[0], self.embedded, tokens)
        for i, (layer, weight, context) in enumerate(zip(self.block, self.weights, contexts, strict=True)):
            if i > 0:
                inputs = x if context is None else self.compute.ops.join(context, x, None)[0]
            out, saved = self.compute.ops.residual_norm(
                x, inputs @ weight.T, layer.bias, None, layer.norm.weight, layer.norm.bias, x.shape[1]
            )
            if tape is not None:
                tape.append((inputs, saved))
            x = out
        return x  # (n, E)

    @torch.no_grad()
    def backward(self, grad: Tensor, tape: list[Any]) -> None:
        """Write the parameters' gradients, from the gradient of `forward`'s output.  # (n, E)"""
        embedding_dim = grad.shape[1]
        for i, layer in reversed(list(enumerate(self.block))):
            inputs, saved = tape.pop()
            grad_x, grad_product, _ = self.compute.ops.residual_norm_backward(
                grad, saved, layer.norm.weight, layer.norm.bias, embedding_dim, want_x=i > 0,
                into=(_grad(layer.norm.weight), _grad(layer.norm.bias), _grad(layer.bias)),
            )  # fmt: skip
            on_weight = _grad(layer.weight)  # (E, D+E) or (E, E)
            if on_weight.shape[1] == inputs.shape[1]:
                self.compute.product_into(on_weight, grad_product.T, inputs)
            else:
                grad_weight = self.compute.product(grad_product.T, inputs)  # (E, W+E)
                on_weight[:, : self.size].copy_(grad_weight[:, : self.size])
                on_weight[:, self.size :].copy_(grad_weight[:, self.width :])
            if i > 0:
                grad = grad_x.addmm_(grad_product, self.weights[i][:, -embedding_dim:])
