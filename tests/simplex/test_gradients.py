"""Derivatives of first and second order against finite differences; vmap and torch.compile against the plain call."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import simplex
from simplex import kernel, losses, margins
from tests.simplex.registry import MAPS, Map

# torch's own: Dynamo instantiates a Function, and log_ndtr has no batching rule.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning"),
]

each_map = pytest.mark.parametrize("mapping", MAPS, ids=str)
TARGET = torch.tensor([0, 3, -100])
SOFT = torch.tensor([[0.5, 0.5, 0, 0, 0], [0.1, 0.2, 0.3, 0.2, 0.2], [0, 0, 0, 0, 1.0]], dtype=torch.float64)

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": losses.cross_entropy,
    "taylor": losses.taylor,
    "smooth_accuracy": losses.smooth_accuracy,
    "sparsemax": losses.sparsemax_loss,
    "entmax15": losses.entmax15_loss,
    "fenchel_young1.3": lambda x, t, **kw: losses.fenchel_young(x, t, 1.3, **kw),
    "fenchel_young2.5": lambda x, t, **kw: losses.fenchel_young(x, t, 2.5, **kw),
    "sparse_softmax": lambda x, t, **kw: losses.sparse_softmax_loss(x, t, top_k=3, **kw),
    "perturb_max": simplex.perturb_max_loss,
}


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


@each_map
def test_map_derivatives(mapping: Map) -> None:
    x = scores(2, 5)
    assert gradcheck(mapping.call, x)
    assert gradcheck(lambda z: mapping.call(z, dim=0, temperature=0.7), x)
    if mapping.second:
        assert gradgradcheck(mapping.call, x)
    else:
        with pytest.raises(NotImplementedError, match="no second derivative"):
            gradgradcheck(mapping.call, x)


@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["classes", "soft"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_derivatives(name: str, target: torch.Tensor) -> None:
    x, weight = scores(3, 5), torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for options in ({}, {"weight": weight, "reduction": "sum", "temperature": 0.6}):
        assert gradcheck(lambda z, o=options: LOSSES[name](z, target, **o), x)
        assert gradgradcheck(lambda z, o=options: LOSSES[name](z, target, **o), x)


@pytest.mark.parametrize("alpha", [1.001, 1.2, 1.5, 1.9, 2.2])
def test_alpha_is_learnable(alpha: float) -> None:
    x, order = scores(3, 6), torch.full((3, 1), alpha, dtype=torch.float64, requires_grad=True)
    assert gradcheck(simplex.entmax, (x, order), eps=1e-7, atol=1e-6)
    assert gradgradcheck(simplex.entmax, (x, order), eps=1e-7, atol=1e-5)
    one = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    for target in (TARGET, torch.softmax(scores(3, 6, seed=1).detach(), -1)):
        assert gradcheck(lambda z, a, t=target: losses.fenchel_young(z, t, a), (x, one), eps=1e-7, atol=1e-6)
        assert gradgradcheck(lambda z, a, t=target: losses.fenchel_young(z, t, a), (x, one), eps=1e-7, atol=1e-5)


def test_derivative_in_alpha_at_one_is_the_limit() -> None:
    x, one = scores(2, 6), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(simplex.entmax(x, one)[:, 0].sum(), one)
    h = 1e-4
    forward = [simplex.entmax(x, 1.0 + j * h)[:, 0].sum().item() for j in range(3)]
    assert slope.item() == pytest.approx((-3 * forward[0] + 4 * forward[1] - forward[2]) / (2 * h), abs=1e-7)
    log_p = torch.log_softmax(x, -1)
    p = log_p.exp()
    want = -p / 2 * (log_p**2 - (p * log_p**2).sum(-1, keepdim=True))
    assert slope.item() == pytest.approx(want[:, 0].sum().item(), abs=1e-12)


@pytest.mark.parametrize("path", ["kernel", "torch"])
@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_long_row_gradient_is_the_jacobian_product(monkeypatch: pytest.MonkeyPatch, path: str, alpha: float) -> None:
    if path == "torch":
        monkeypatch.setattr(kernel, "usable", lambda x, alpha: False)
    elif kernel.library() is None:
        pytest.skip("no C compiler on this machine")
    for scale in (1.0, 0.01):
        x = (scores(3, 3000).detach() * scale).requires_grad_()
        g = scores(3, 3000, seed=1).detach()
        p = simplex.entmax(x, alpha)
        (got,) = torch.autograd.grad(p, x, g)
        s = torch.where(p > 0, p, 0) ** (2 - alpha) * (p > 0)
        want = s * g - s * (s * g).sum(-1, keepdim=True) / s.sum(-1, keepdim=True)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    small = (scores(1, 2100).detach() * 3).requires_grad_()
    v = scores(2100, seed=2).detach()

    def first(z: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((simplex.entmax(z, alpha)[0] * v).sum(), z, create_graph=True)[0]

    direction = scores(1, 2100, seed=3).detach()
    (second,) = torch.autograd.grad((first(small) * direction).sum(), small)
    h = 1e-6
    change = (first(small + h * direction) - first(small - h * direction)) / (2 * h)
    torch.testing.assert_close(second, change.detach(), rtol=1e-5, atol=1e-6)


@each_map
def test_vmap(mapping: Map) -> None:
    x = scores(4, 3, 5).detach()
    want = mapping.call(x)
    torch.testing.assert_close(torch.func.vmap(mapping.call)(x), want)
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(mapping.call), in_dims=1, out_dims=1)(x), want)

    def energy(row: torch.Tensor) -> torch.Tensor:
        return (mapping.call(row) ** 2).sum()

    y = x[:, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((mapping.call(y) ** 2).sum(), y)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(energy))(y.detach()), gradient)
    if mapping.second:
        hessian = torch.func.vmap(torch.func.jacrev(torch.func.grad(energy)))(y.detach())
        torch.testing.assert_close(hessian, hessian.mT, rtol=1e-8, atol=1e-10)


def test_vmap_over_learnable_alpha() -> None:
    x, alphas = scores(5).detach(), torch.tensor([1.0, 1.3, 1.5, 2.0], dtype=torch.float64)
    got = torch.func.vmap(lambda a: simplex.entmax(x, a.reshape(1)))(alphas + 0)
    for alpha, p in zip(alphas, got, strict=True):
        torch.testing.assert_close(p, simplex.entmax(x, float(alpha)))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_vmap(name: str) -> None:
    x, target = scores(3, 5).detach(), torch.tensor([0, 3, 4])
    got = torch.func.vmap(torch.func.grad(LOSSES[name]))(x, target)
    z = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(LOSSES[name](z, target, reduction="sum"), z)
    torch.testing.assert_close(got, want)


def graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` captured whole, a graph break being an error; run without generating code, which takes minutes."""
    torch.compiler.reset()
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, backend="aot_eager")
    return compiled


@each_map
def test_compiles_without_a_graph_break(mapping: Map) -> None:
    if not mapping.second:
        pytest.skip("bounded noise differentiates through closures, which torch.compile does not take")
    x = scores(3, 5)
    compiled = graph(mapping.call)
    torch.testing.assert_close(compiled(x), mapping.call(x))
    got, want = (torch.autograd.grad((f(x) ** 2).sum(), x)[0] for f in (compiled, mapping.call))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["cross_entropy", "taylor", "entmax15", "fenchel_young1.3"])
def test_losses_on_margins_compile_without_a_graph_break(name: str) -> None:
    cos = (scores(3, 5).detach() / 4).requires_grad_()
    target = torch.tensor([0, 3, 4])

    def step(c: torch.Tensor) -> Any:
        return LOSSES[name](30 * margins.cosface(c, target), target)

    compiled = graph(step)
    got, want = (torch.autograd.grad(f(cos), cos)[0] for f in (compiled, step))
    torch.testing.assert_close(got, want)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX") or "c++") is None, reason="no C++ compiler for torch.compile")
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_compiles_to_machine_code(scale: float) -> None:
    """The default backend, all in one graph, so that its compiler is started once forward and once backward."""

    def step(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([simplex.softmax(z), simplex.sparsemax(z, temperature=0.5), simplex.entmax15(z)])

    x = (scores(4, 3000).detach() * scale).requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    g = scores(3, 4, 3000, seed=1).detach()
    torch.testing.assert_close(compiled(x), step(x), rtol=1e-12, atol=1e-13)
    got, want = (torch.autograd.grad(f(x), x, g)[0] for f in (compiled, step))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
