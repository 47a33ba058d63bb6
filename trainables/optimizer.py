"""Adam with a clipped gradient norm over one flat tensor: a few kernels a step however many parameters there are."""

import torch
from torch import Tensor, nn

GPU_SLICE = 1 << 14  # entries that one block of the fused kernel takes: a single tensor would keep few of them busy


class FlatAdam:
    """Makes all parameters of a module views of one tensor, and steps that.

    The same numbers as `clip_grad_norm_` and `torch.optim.Adam` on the parameters one by one, up to rounding.
    """

    def __init__(self, module: nn.Module, learning_rate: float, grad_clip: float) -> None:
        """`grad_clip` is the largest norm of the whole gradient. Every parameter has a zero `.grad` afterwards."""
        parameters = list(module.parameters())
        self.flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        self.grad_clip = grad_clip
        at = 0
        for parameter in parameters:
            here = slice(at, at + parameter.numel())
            parameter.data = self.flat.data[here].view_as(parameter)
            parameter.grad = self.flat.grad[here].view_as(parameter)
            at += parameter.numel()
        size = GPU_SLICE if self.flat.is_cuda else at
        slices = [nn.Parameter(values) for values in self.flat.data.split(size)]
        for part, grad in zip(slices, self.flat.grad.split(size), strict=True):
            part.grad = grad
        self.adam = torch.optim.Adam(slices, lr=learning_rate, fused=True, capturable=self.flat.is_cuda)

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradient in the parameters' `.grad`."""
        assert self.flat.grad is not None
        norm = torch.linalg.vector_norm(self.flat.grad)
        self.flat.grad *= (self.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        self.adam.step()

    def weights(self) -> Tensor:
        """A copy of all parameters."""
        return self.flat.detach().clone()

    @torch.no_grad()
    def load(self, weights: Tensor) -> None:
        """Take over what `weights` returned."""
        self.flat.copy_(weights)
