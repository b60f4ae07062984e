"""Entmax rows on tensors by looking at few of the scores: an exact top-k, a solve on it, and a proof that it suffices.

The support of entmax is small. The k best scores are found at two levels (the k best elements lie in the k blocks with
the largest maxima), solved in closed form, and if the k-th gets probability 0 so do all the others: the row is exact.
Otherwise the threshold found is a lower bound of the true one, so the scores above it are all that is needed.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from simplex import kernel
from simplex.solvers import entmax_rows, polynomial, sorted_threshold

BLOCK = 32
FIRST_K = {2.0: 16, 1.5: 64}


def solve(x: torch.Tensor, alpha: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """entmax of rows (..., n), and the columns (..., k) outside which it is 0, with k = 0 when they are not known."""
    anywhere = x.new_empty((*x.shape[:-1], 0), dtype=torch.int64)
    if kernel.usable(x, alpha):
        return kernel.forward(x, cast(float, alpha)), anywhere
    k = FIRST_K.get(alpha, 0) if isinstance(alpha, float) else 0
    if not k or x.shape[-1] <= 2 * k or not x.numel():
        return _dense(x, alpha), anywhere
    assert isinstance(alpha, float)
    p, columns, exact = _from_top(x, alpha, k)
    if bool(exact.all()):
        return torch.zeros_like(x).scatter_(-1, columns, p), columns
    return _finish(x, alpha, p, columns, exact), anywhere


def jacobian_product(
    p: torch.Tensor, g: torch.Tensor, alpha: float | torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """s g - s <s, g> / sum s, s = p^(2-alpha) on the support, touching only `columns` when there are any."""
    if kernel.usable(p, alpha):
        return kernel.backward(p, g, cast(float, alpha))
    if columns.shape[-1]:
        at = _jacobian_product(p.gather(-1, columns), g.gather(-1, columns), alpha)
        return torch.zeros_like(p).scatter_(-1, columns, at)
    return _jacobian_product(p, g, alpha)


def _jacobian_product(p: torch.Tensor, g: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    if isinstance(alpha, float) and alpha == 2:
        s = (p != 0).to(p.dtype)
    elif isinstance(alpha, float) and alpha == 1.5:
        s = p.sqrt()
    else:
        s = torch.where(p != 0, p ** (2 - alpha), 0)
    sg = s * g
    return sg - s * (sg.sum(-1, keepdim=True) / s.sum(-1, keepdim=True))


def top(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row (..., n) in descending order, and their columns: (..., k) both."""
    blocks = x.shape[-1] // BLOCK
    if blocks < 4 * k:
        values, columns = x.topk(k, -1)
        return values, columns
    body, tail = x[..., : blocks * BLOCK], x[..., blocks * BLOCK :]
    body = body.reshape(*x.shape[:-1], blocks, BLOCK)
    chosen = body.amax(-1).topk(k, -1, sorted=False).indices
    few = body.gather(-2, chosen[..., None].expand(*chosen.shape, BLOCK)).flatten(-2)
    inside = (chosen[..., None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(-2)
    outside = torch.arange(blocks * BLOCK, x.shape[-1], device=x.device).expand(tail.shape)
    values, where = torch.cat([few, tail], -1).topk(k, -1)
    return values, torch.cat([inside, outside], -1).gather(-1, where)


def _dense(x: torch.Tensor, alpha: Any) -> torch.Tensor:
    p = entmax_rows(x - x.amax(-1, keepdim=True), alpha, torch) if x.numel() else torch.zeros_like(x)
    assert isinstance(p, torch.Tensor)
    return p


def _from_top(x: torch.Tensor, alpha: float, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities over the top k, their columns, and whether each row is proven exact."""
    values, columns = top(x, k)
    y = values - values[..., :1]
    p = polynomial(y, sorted_threshold(y, alpha, torch), alpha, torch)
    return p, columns, p[..., -1] == 0


def _finish(x: torch.Tensor, alpha: float, p: torch.Tensor, columns: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """All rows, the ones not yet exact solved again over every score above the lower bound of their threshold."""
    result = torch.zeros_like(x).scatter_(-1, columns, p)
    open_rows = x[~exact]
    best = open_rows.amax(-1, keepdim=True)
    # p_1 of the top-k solve bounds how far below the best score the support can reach.
    reach = p[~exact][..., :1] ** (alpha - 1) / (alpha - 1)
    needed = int((open_rows - best > -reach).sum(-1).max()) + 1
    if needed <= x.shape[-1] // 8 and not bool(open_rows.isnan().any() | best.isinf().any()):
        again, at, _ = _from_top(open_rows, alpha, needed)
        result[~exact] = torch.zeros_like(open_rows).scatter_(-1, at, again)
    else:
        result[~exact] = _dense(open_rows, alpha)
    return result
