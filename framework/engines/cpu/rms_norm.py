"""RMSNorm for training on a CPU, where its cost is passes over memory: half of them, forward and backward.

It keeps its input and one number a token for the backward pass; transformers' keeps the normalised states as well.
Whatever the dtype it computes in float32, and rounds once.
Dimensions: T tokens, D hidden size.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class FastRMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, as transformers' RMSNorm modules, whose parameter it takes over."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same shape."""
        output: torch.Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return output


def use_fast_norms(model: nn.Module) -> int:
    """Replace transformers' RMSNorm modules in place and return how many; parameters and their names stay.

    Norms that only bear the name (Gemma's multiply by 1 + weight) stay as they are.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__.endswith("RMSNorm") and not isinstance(child, FastRMSNorm) and _is_plain(child)
    ]
    for parent, name, norm in found:
        setattr(parent, name, FastRMSNorm(norm.weight, norm.variance_epsilon))  # type: ignore[arg-type]
    return len(found)


@torch.no_grad()
def _is_plain(norm: nn.Module) -> bool:
    """Whether a norm is x / rms(x) * weight: tried on four numbers, with weights of its own kind."""
    eps = getattr(norm, "variance_epsilon", None)
    if eps is None or list(dict(norm.named_parameters())) != ["weight"]:
        return False
    tried, x_TD = copy.copy(norm), torch.tensor([[0.5, -1.0, 2.0, 0.25]])
    weight = nn.Parameter(torch.tensor([0.5, 1.5, -2.0, 3.0]))
    tried._parameters = {"weight": weight}
    tried._forward_hooks, tried._forward_pre_hooks = OrderedDict(), OrderedDict()
    return torch.allclose(tried(x_TD), FastRMSNorm(weight, eps)(x_TD))


def _exact(x: torch.Tensor) -> torch.Tensor:
    """At least float32; no copy of what is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        exact_TD = _exact(x_TD)
        mean_square_T1 = torch.linalg.vector_norm(exact_TD, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale_T1 = mean_square_T1.add_(eps).rsqrt_()
        ctx.save_for_backward(x_TD, scale_T1, weight_D)
        scaled_TD = exact_TD * scale_T1 if exact_TD is x_TD else exact_TD.mul_(scale_T1)
        return scaled_TD.mul_(weight_D).to(x.dtype).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x_TD, scale_T1, weight_D = ctx.saved_tensors
        exact_TD, grad_TD, exact_D = _exact(x_TD), _exact(grad.reshape(x_TD.shape)), _exact(weight_D)
        product_TD = grad_TD * exact_TD
        grad_weight_D = torch.mv(product_TD.t(), scale_T1.squeeze(-1))
        along_T1 = torch.mv(product_TD, exact_D).unsqueeze(-1)
        # d x = s w g - x s^3 / D sum(g w x), in the memory of the product
        grad_x_TD = torch.mul(grad_TD, exact_D, out=product_TD).mul_(scale_T1)
        grad_x_TD.addcmul_(exact_TD, along_T1.mul_(scale_T1.pow(3)).div_(-x_TD.shape[-1]))
        return grad_x_TD.to(grad.dtype).view(grad.shape), grad_weight_D.to(weight_D.dtype), None
