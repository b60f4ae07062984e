"""AdamW that updates only the rows of a parameter that have a gradient, where the gradient is sparse.

Rows without a gradient keep their moments, as in `torch.optim.SparseAdam`; weight decay does not apply to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class RowAdamW(torch.optim.AdamW):
    """Dense gradients as in AdamW (Loshchilov & Hutter 2019), sparse ones row by row."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step over all parameters. Raises `ValueError` for weight decay on a sparse gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        set_aside = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    set_aside.append((parameter, parameter.grad))
                    parameter.grad = None
        super().step()
        for parameter, gradient in set_aside:
            parameter.grad = gradient
        return loss

    def _step_rows(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            raise ValueError(f"weight_decay must be 0 for rows with sparse gradients, got {group['weight_decay']}")
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        first, second = group["betas"]
        mean = state["exp_avg"][rows].lerp_(values, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(values, values, value=1 - second)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        step = float(state["step"])
        spread = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.index_add_(0, rows, mean.div_(spread), alpha=-float(group["lr"]) / (1 - first**step))
