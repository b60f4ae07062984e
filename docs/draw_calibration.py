"""Draw the pictures of docs/calibration.md: `python docs/draw_calibration.py ../shared/data/clinc150`.

Builds a collection of CLINC150's training rows with the `static` encoder, untrained; calibrates it on val + oos_val;
asks it test + oos_test; writes docs/figures/calibration-*.svg and prints the numbers the page quotes. CLINC150: Larson
et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", CC BY 3.0.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "calibration", "svg.fonttype": "none"})  # the same drawing gives the same file
from matplotlib import pyplot as plt  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent))
from index import metrics  # noqa: E402
from index.build import build_collection  # noqa: E402
from index.calibration.sources import Held  # noqa: E402
from index.collection import Collection  # noqa: E402
from index.data.rows import Row, read_rows  # noqa: E402

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
FIGURES = Path(__file__).parent / "figures"


def ask(data: Path) -> tuple[Floats, Floats, Flags, Flags]:
    """(n,) of the test queries: best cosine, probability of the top hit, whether it is right, whether known."""

    def rows(name: str) -> list[Row]:
        return read_rows([data / f"{name}.csv"], text="text", label="intent")

    known, unknown = rows("test"), rows("oos_test")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clinc"
        build_collection("static", rows("train"), out, held=Held(rows("val"), rows("oos_val")))
        collection = Collection.open(out)
        answers = collection.search([row.text for row in [*known, *unknown]], k=1)
        collection.close()
    hits = [answer.hits[0] for answer in answers]
    is_known = np.arange(len(hits)) < len(known)
    right = np.array([hit.label == row.label for hit, row in zip(hits, [*known, *unknown], strict=True)]) & is_known
    return np.array([hit.score for hit in hits]), np.array([hit.probability for hit in hits]), right, is_known


def draw_reliability(cosine: Floats, p: Floats, right: Flags) -> None:
    """Said against happened, in bins of a tenth, with the queries of each below: the raw cosine beside the answer."""
    figure, axes = plt.subplots(
        2, 2, figsize=(7, 4.4), sharex=True, height_ratios=[3, 1], sharey="row", layout="constrained"
    )
    for column, (said, name) in enumerate(((cosine, "best cosine, taken at its word"), (p, "calibrated probability"))):
        above, below = axes[:, column]
        above.plot([0, 1], [0, 1], color="0.6", linestyle="--")
        of_bin = np.clip((said * 10).astype(int), 0, 9)
        used = np.unique(of_bin)
        happened = [right[of_bin == bin].mean() for bin in used]
        above.plot([said[of_bin == bin].mean() for bin in used], happened, "o-")
        above.set(title=f"{name}\nECE {metrics.ece(said, right):.3f}", ylabel="" if column else "share that was right")
        below.hist(said, bins=10, range=(0, 1), rwidth=0.9)
        below.set(xlabel="said", ylabel="" if column else "queries")
    save(figure, "reliability")


def draw_scores(cosine: Floats, p: Floats, known: Flags) -> None:
    """Histograms of known and unknown queries: where one cosine means both, and what the probability makes of it."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    for panel, said, name in ((axes[0], cosine, "best cosine"), (axes[1], p, "calibrated probability")):
        for part, label in ((known, "known"), (~known, "unknown")):
            panel.hist(said[part], bins=40, range=(0, 1), density=True, alpha=0.6, label=label)
        panel.set(xlabel=name, ylabel="density")
    axes[0].legend()
    save(figure, "scores")


def draw_risk(cosine: Floats, p: Floats, right: Flags) -> None:
    """Share of wrong answers among the surest, against how many of all are answered."""
    figure, axes = plt.subplots(figsize=(4.5, 2.8), layout="constrained")
    for said, name in ((cosine, "surest by cosine"), (p, "surest by probability")):
        wrong = ~right[np.argsort(-said, kind="stable")]
        answered = np.arange(1, len(wrong) + 1)
        axes.plot(answered[50:] / len(wrong), (wrong.cumsum() / answered)[50:], label=name)
    axes.set(xlabel="share of queries answered", ylabel="share of them wrong", ylim=(0, None))
    axes.legend()
    save(figure, "risk")


def draw(cosine: Floats, p: Floats, right: Flags, known: Flags) -> None:
    """All pictures of the page."""
    FIGURES.mkdir(exist_ok=True)
    draw_reliability(cosine, p, right)
    draw_scores(cosine, p, known)
    draw_risk(cosine, p, right)


def save(figure: Any, name: str) -> None:
    figure.savefig(FIGURES / f"calibration-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def quoted(cosine: Floats, p: Floats, right: Flags, known: Flags) -> dict[str, str]:
    """The numbers of the page, by what they are."""
    found = {
        "known queries": f"{known.sum():,}",
        "unknown queries": f"{(~known).sum():,}",
        "ECE, cosine taken at its word": f"{metrics.ece(cosine, right):.3f}",
        "ECE, calibrated": f"{metrics.ece(p, right):.4f}",
        "ECE, a perfect one": f"{metrics.ece_floor(p):.4f}",
    }
    for low, high in ((0.7, 0.8), (0.8, 0.9)):
        some = (p >= low) & (p < high)
        found[f"right of those given {low} to {high}"] = f"{right[some].mean():.1%}"
    half = len(p) // 2
    for said, name in ((cosine, "cosine"), (p, "probability")):
        wrong = 1 - right[np.argsort(-said, kind="stable")[:half]].mean()
        found[f"wrong of the surest half by {name}"] = f"{wrong:.2%}"
    return found


if __name__ == "__main__":
    default = Path(__file__).parents[2] / "shared" / "data" / "clinc150"
    asked = ask(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
    draw(*asked)
    for what, figure in quoted(*asked).items():
        print(f"{what}: {figure}")
