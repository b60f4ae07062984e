"""Several processes under `torchrun`: who we are, and the batch of all of them as one.

Every process encodes its part of a batch; the vectors are gathered, and each takes the loss of the whole batch. So
objectives see the same batch as in one process, running statistics and class weights stay equal everywhere without
being sent, and the loss is that of one process up to rounding.

Gradients: the trainer averages the encoder's gradients over the W processes. `gather` therefore sums what all processes
say about a vector, which for W equal losses is W times the gradient. Where every process knows only a part of the loss
(class weights in shards) the sum is the gradient itself, and `times_processes` makes up for the averaging.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed


def world() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if _running() else 1


def rank() -> int:
    """This process among them, from 0; process 0 reports and writes."""
    return distributed.get_rank() if _running() else 0


@contextmanager
def processes() -> Iterator[None]:
    """Joins the other processes that `torchrun` started, for the length of the block; alone, does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _running():
        yield
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gather(x: Tensor) -> Tensor:
    """Rows (n, ...) of every process, the same number in each, as one tensor (W n, ...); see above for the gradient."""
    if world() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def total(x: Tensor) -> Tensor:
    """The sum over all processes, without a gradient."""
    return _reduced(x, distributed.ReduceOp.SUM)


def largest(x: Tensor) -> Tensor:
    """The elementwise maximum over all processes, without a gradient."""
    return _reduced(x, distributed.ReduceOp.MAX)


def times_processes(x: Tensor) -> Tensor:
    """`x`, whose gradient counts W times."""
    return x if world() == 1 else x * world() - (x * (world() - 1)).detach()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0]).chunk(world())[rank()]


def _reduced(x: Tensor, operation: Any) -> Tensor:
    if world() == 1:
        return x.detach()
    result = x.detach().clone().contiguous()
    distributed.all_reduce(result, operation)
    return result


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
