"""entmax on tensors."""

from __future__ import annotations

from typing import Any

import torch

from simplex.solvers import entmax_rows


def entmax_tensor(x: torch.Tensor, alpha: Any) -> torch.Tensor:
    """Probabilities of rows (..., n) of any constant."""
    p = entmax_rows(x - x.amax(-1, keepdim=True), alpha, torch)
    assert isinstance(p, torch.Tensor)
    return p
