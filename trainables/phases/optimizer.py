"""Adam with a clipped gradient norm over one flat tensor: a few kernels a step however many parameters there are."""

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from model.ops import native
from model.ops.compute import Compute

BETAS, EPS = (0.9, 0.999), 1e-8  # torch.optim.Adam's defaults
GPU_SLICE = 1 << 14  # entries that one block of the fused kernel takes: a single tensor would keep few of them busy


class FlatAdam:
    """Makes all parameters of a module views of one tensor, and steps that.

    The same numbers as `clip_grad_norm_` and `torch.optim.Adam` on the parameters one by one, up to rounding; it calls
    the optimiser's function, since its object takes longer than the arithmetic of a small model's step.
    """

    def __init__(self, module: nn.Module, learning_rate: float, grad_clip: float, compute: Compute) -> None:
        """`grad_clip` is the largest norm of the whole gradient. Every parameter has a zero `.grad` afterwards."""
        parameters = list(module.parameters())
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.grad = torch.zeros_like(self.flat)
        self.grad_clip = grad_clip
        at = 0
        for parameter in parameters:
            here = slice(at, at + parameter.numel())
            parameter.data = self.flat[here].view_as(parameter)
            parameter.grad = self.grad[here].view_as(parameter)
            at += parameter.numel()
        self.learning_rate = learning_rate
        size = GPU_SLICE if self.flat.is_cuda else at
        self.values, self.grads = list(self.flat.split(size)), list(self.grad.split(size))
        self.means = list(torch.zeros_like(self.flat).split(size))
        self.squares = list(torch.zeros_like(self.flat).split(size))
        self.native = compute.native and self.flat.dtype == torch.float32
        self.counts = [torch.zeros((), device=self.flat.device) for _ in self.values]  # steps taken, of each piece
        self.steps = 0  # the same where they are taken in C

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradient in the parameters' `.grad`."""
        if self.native:
            self.steps += 1
            native.adam(
                self.flat, self.grad, self.means[0], self.squares[0], self.steps, self.learning_rate,
                self.grad_clip, BETAS, EPS,
            )  # fmt: skip
            return
        norm = torch.linalg.vector_norm(self.grad)
        self.grad *= (self.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        adam(
            self.values, self.grads, self.means, self.squares, [], self.counts, fused=True,
            capturable=self.flat.is_cuda, amsgrad=False, maximize=False, lr=self.learning_rate, beta1=BETAS[0],
            beta2=BETAS[1], eps=EPS, weight_decay=0.0,
        )  # fmt: skip

    def weights(self) -> Tensor:
        """A copy of all parameters."""
        return self.flat.clone()

    @torch.no_grad()
    def load(self, weights: Tensor) -> None:
        """Take over what `weights` returned."""
        self.flat.copy_(weights)

    def state(self) -> dict[str, Tensor]:
        """Weights, both moments and the number of steps taken: all that the next step depends on beside the gradient.

        # (P,), (P,), (P,), ()
        """
        return {
            "weights": self.flat,
            "means": torch.cat(self.means),
            "squares": torch.cat(self.squares),
            "steps": torch.tensor(float(self.steps)) if self.native else self.counts[0],
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.load(state["weights"])
        for pieces, kept in ((self.means, state["means"]), (self.squares, state["squares"])):
            for piece, value in zip(pieces, kept.split(len(pieces[0])), strict=True):
                piece.copy_(value)
        for count in self.counts:
            count.copy_(state["steps"])
        self.steps = int(state["steps"])
