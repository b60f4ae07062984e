"""On a CUDA device: the same numbers as on the CPU, where oracles check them; results stay on the device.

Skipped on machines without one. `make test-cuda` runs what concerns the device in both rooms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import simplex
from simplex import losses
from tests.simplex.registry import MAPS, Map
from tests.simplex.test_gradients import LOSSES
from tests.simplex.test_losses import MARGINS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: nothing was checked on one", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]
each_map = pytest.mark.parametrize("mapping", MAPS, ids=str)
precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-7)], ids=["float64", "float32"]
)


def scores(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Drawn on the CPU, so that both devices get the same."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def home(value: torch.Tensor) -> torch.Tensor:
    assert value.device.type == "cuda"
    return value.cpu()


@each_map
@precisions
def test_maps(mapping: Map, dtype: torch.dtype, tolerance: float) -> None:
    x = 2 * scores(7, 60)
    x[1, 5:9], x[2, 1:], x[3] = -torch.inf, -torch.inf, 0.25
    x = x.to(dtype)
    want = mapping.call(x.double())
    got = mapping.call(x.cuda())
    assert got.dtype == dtype
    torch.testing.assert_close(home(got).double(), want, rtol=0, atol=tolerance)
    torch.testing.assert_close(home(mapping.call(x.cuda().mT, dim=0).mT).double(), want, rtol=0, atol=tolerance)


@each_map
def test_rows_without_an_answer_are_nan_and_leave_others_alone(mapping: Map) -> None:
    x = scores(3, 8)
    x[0, 2], x[1] = torch.nan, -torch.inf
    got = home(mapping.call(x.cuda()))
    assert got[:2].isnan().all()
    torch.testing.assert_close(got[2], mapping.call(x[2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_map
def test_half_precision_is_computed_in_float32(mapping: Map, dtype: torch.dtype) -> None:
    x = scores(4, 200).to(dtype)
    got = mapping.call(x.cuda())
    assert got.dtype == dtype
    torch.testing.assert_close(home(got), mapping.call(x), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("scale", [3.0, 0.01, 0.0])
@pytest.mark.parametrize("n", [3000, 1_000_000])
@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
@precisions
def test_long_rows(dtype: torch.dtype, tolerance: float, alpha: float, n: int, scale: float) -> None:
    x = (scale * scores(3, n)).to(dtype)
    want = simplex.entmax(x.double(), alpha)
    got = home(simplex.entmax(x.cuda(), alpha))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.double().sum(-1).numpy(), 1, atol=2e-6 if dtype == torch.float32 else 1e-12)


def derivatives(function: Callable[..., Any], x: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    """Value, gradient, and the gradient of the gradient's length."""
    x = x.detach().clone().requires_grad_()
    value = function(x, *others)
    weights = torch.arange(1.0, value.numel() + 1, dtype=x.dtype, device=x.device).view(value.shape)
    (first,) = torch.autograd.grad((value * weights).sum(), x, create_graph=True)
    if not first.requires_grad:
        return [value.detach(), first]
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return [value.detach(), first.detach(), second]


@each_map
def test_map_derivatives(mapping: Map) -> None:
    if not mapping.second:
        pytest.skip("no second derivative to compare")
    x = scores(3, 9)
    for got, want in zip(derivatives(mapping.call, x.cuda()), derivatives(mapping.call, x), strict=True):
        torch.testing.assert_close(home(got), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, soft: bool) -> None:
    x = scores(4, 6)
    target = simplex.softmax(scores(4, 6, seed=1)) if soft else torch.tensor([0, 5, -100, 2])
    for reduction in ("none", "mean"):

        def loss(z: torch.Tensor, t: torch.Tensor, reduction: str = reduction) -> Any:
            return LOSSES[name](z, t, reduction=reduction)

        for got, want in zip(derivatives(loss, x.cuda(), target.cuda()), derivatives(loss, x, target), strict=True):
            torch.testing.assert_close(home(got), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.2])
def test_alpha_can_be_learned(alpha: float) -> None:
    order = torch.full((3, 1), alpha, dtype=torch.float64, device="cuda", requires_grad=True)
    x = scores(3, 6).cuda()
    (got,) = torch.autograd.grad((simplex.entmax(x, order) ** 2).sum(), order)
    local = torch.full((3, 1), alpha, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad((simplex.entmax(scores(3, 6), local) ** 2).sum(), local)
    torch.testing.assert_close(home(got), want, rtol=1e-9, atol=1e-11)


def test_finite_differences_on_the_device() -> None:
    x = scores(2, 5).cuda().requires_grad_()
    for function in (simplex.sparsemax, simplex.entmax15, simplex.taylor_softmax):
        assert gradcheck(function, x)
        assert gradgradcheck(function, x)


@pytest.mark.parametrize("name", MARGINS)
def test_margins(name: str) -> None:
    function = MARGINS[name][0]
    cos = torch.linspace(-0.99, 0.99, 40, dtype=torch.float64).view(8, 5)
    target = torch.tensor([0, 1, 2, 3, 4, -100, 0, 1])
    for got, want in zip(
        derivatives(function, cos.cuda(), target.cuda()), derivatives(function, cos, target), strict=True
    ):
        torch.testing.assert_close(home(got), want, rtol=1e-9, atol=1e-11)


def test_losses_under_autocast_are_computed_in_float32() -> None:
    x = scores(16, 50, dtype=torch.float32).cuda().requires_grad_()
    target = torch.arange(16, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = losses.entmax15_loss(x, target)
    torch.testing.assert_close(got, losses.entmax15_loss(x, target))
    (gradient,) = torch.autograd.grad(got, x)
    assert gradient.isfinite().all()


def test_sampling_draws_from_a_generator_of_the_device() -> None:
    x = torch.tensor([0.5, -1.0, 2.0, -torch.inf], dtype=torch.float64)
    generator = torch.Generator("cuda").manual_seed(7)
    drawn = home(simplex.gumbel_max(x.cuda().expand(100_000, 4), generator=generator))
    p = simplex.softmax(x)
    shares = torch.bincount(drawn, minlength=4) / 1e5
    assert ((shares - p).abs() <= 5 * (p * (1 - p) / 1e5).sqrt()).all()
    hard = home(simplex.gumbel_softmax(x.cuda().expand(5, 4), tau=0.5, hard=True, generator=generator))
    torch.testing.assert_close(hard.sum(-1), torch.ones(5, dtype=torch.float64))


def test_attention_and_certificates() -> None:
    q, k, v = (scores(2, 131, 5, seed=seed) for seed in range(3))
    for causal in (False, True):
        want = simplex.taylor_attention(q, k, v, causal=causal)
        got = home(simplex.taylor_attention(q.cuda(), k.cuda(), v.cuda(), causal=causal))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    best = scores(5, 20).sort(descending=True).values
    want, got = (simplex.certify(x, 1000, alpha=2.0, temperature=0.1) for x in (best, best.cuda()))
    np.testing.assert_array_equal(got.certified, want.certified)
    np.testing.assert_allclose(got.probabilities, want.probabilities, rtol=0, atol=1e-14)


def test_compiles_to_kernels_of_the_device() -> None:
    def step(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([simplex.softmax(z), simplex.sparsemax(z, temperature=0.5), simplex.entmax15(z)])

    x = scores(4, 3000).cuda().requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    g = scores(3, 4, 3000, seed=1).cuda()
    torch.testing.assert_close(compiled(x), step(x), rtol=1e-12, atol=1e-13)
    got, want = (torch.autograd.grad(f(x), x, g)[0] for f in (compiled, step))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
