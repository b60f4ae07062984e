"""The two entmax products as torch operators: opaque to torch.compile, which must not look into their control flow.

Only compiled graphs call them; eager code goes the shorter way through simplex.topk.
"""

import torch

from simplex import topk


def _order(alpha: float, alphas: torch.Tensor | None) -> float | torch.Tensor:
    return alpha if alphas is None else alphas


@torch.library.custom_op("simplex::entmax", mutates_args=())
def entmax(x: torch.Tensor, alpha: float, alphas: torch.Tensor | None) -> torch.Tensor:
    """entmax of rows (..., n) at order `alpha`, or at `alphas` (..., 1) where given."""
    p, _ = topk.solve(x.contiguous(), _order(alpha, alphas))
    return p


@entmax.register_fake
def _(x: torch.Tensor, alpha: float, alphas: torch.Tensor | None) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("simplex::entmax_product", mutates_args=())
def entmax_product(p: torch.Tensor, g: torch.Tensor, alpha: float, alphas: torch.Tensor | None) -> torch.Tensor:
    """The Jacobian of entmax at p (..., n) times g (..., n)."""
    anywhere = p.new_empty((*p.shape[:-1], 0), dtype=torch.int64)
    return topk.jacobian_product(p.contiguous(), g.contiguous(), _order(alpha, alphas), anywhere)


@entmax_product.register_fake
def _(p: torch.Tensor, g: torch.Tensor, alpha: float, alphas: torch.Tensor | None) -> torch.Tensor:
    return torch.empty_like(p, memory_format=torch.contiguous_format)
