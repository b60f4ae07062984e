"""Draw the pictures of docs/maps.md: `python docs/draw_maps.py` writes docs/figures/map-*.svg.

Each picture has three panels: the probability of the better of two scores against their gap, the number of
probabilities above 1e-12 among 1,000 random scores against the temperature, and the slope of the first curve.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "maps", "svg.fonttype": "none"})  # the same drawing gives the same file
from matplotlib import pyplot as plt  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent))
import simplex  # noqa: E402

Map = Callable[..., Any]
FIGURES = Path(__file__).parent / "figures"

MAPS: dict[str, dict[str, Map]] = {
    "softmax": {"softmax": simplex.softmax},
    "taylor": {
        "order 2": simplex.taylor_softmax,
        "order 6": lambda x, **kw: simplex.taylor_softmax(x, order=6, **kw),
        "order 2, raw": lambda x, **kw: simplex.taylor_softmax(x, monotone=False, **kw),
    },
    "sparse-softmax": {
        "top 10": lambda x, **kw: simplex.sparse_softmax(x, top_k=10, **kw),
        "nucleus 0.9": lambda x, **kw: simplex.sparse_softmax(x, top_p=0.9, **kw),
    },
    "entmax": {
        "alpha 1.25": lambda x, **kw: simplex.entmax(x, 1.25, **kw),
        "alpha 1.5": simplex.entmax15,
        "sparsemax": simplex.sparsemax,
    },
    "perturb-max": {
        noise: lambda x, noise=noise, **kw: simplex.perturb_max(x, noise=noise, **kw)
        for noise in ("normal", "logistic", "uniform")
    },
}


def draw(name: str, members: dict[str, Map]) -> None:
    """One row of three panels; softmax is drawn in grey behind every other map."""
    figure, (value, support, slope) = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    gaps = np.linspace(-4, 4, 161)
    pairs = np.stack([gaps, np.zeros_like(gaps)], -1)
    temperatures = np.geomspace(0.05, 2, 15)
    scores = np.random.default_rng(0).normal(size=(4, 1000))
    curves = {"softmax": simplex.softmax} | members if name != "softmax" else members
    for label, function in curves.items():
        style = {"color": "0.6", "linestyle": "--"} if label == "softmax" and name != "softmax" else {}
        p = function(pairs)[:, 0]
        value.plot(gaps, p, label=label, **style)
        slope.plot(gaps, np.gradient(p, gaps), **style)
        # Below 1e-12 a probability is rounding of the integral, not support.
        sizes = [(function(scores, temperature=t) > 1e-12).sum(-1).mean() for t in temperatures]
        support.loglog(temperatures, sizes, **style)
    value.set(xlabel="score gap x - 0", title="probability of x")
    support.set(xlabel="temperature", title="above 1e-12, of 1,000", ylim=(0.8, 1300))
    slope.set(xlabel="score gap x - 0", title="slope dp/dx")
    value.legend(fontsize=7)
    figure.savefig(FIGURES / f"map-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def draw_losses() -> None:
    """The Fenchel-Young losses of two scores against the target's lead: where each becomes exactly 0."""
    figure, axes = plt.subplots(figsize=(4.5, 2.6), layout="constrained")
    lead = np.linspace(-2, 5, 141)
    pairs, target = np.stack([lead, np.zeros_like(lead)], -1), np.zeros(len(lead), dtype=int)
    from simplex import losses

    for alpha in (1.0, 1.25, 1.5, 2.0):
        axes.plot(lead, losses.fenchel_young(pairs, target, alpha, reduction="none"), label=f"alpha {alpha}")
    axes.set(xlabel="lead of the target", title="Fenchel-Young loss")
    axes.legend(fontsize=7)
    figure.savefig(FIGURES / "map-losses.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    for name, members in MAPS.items():
        draw(name, members)
    draw_losses()
    print(f"drew {len(MAPS) + 1} pictures into {FIGURES}")
