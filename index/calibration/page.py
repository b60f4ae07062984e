"""The calibration report as one self-contained page: pictures drawn as inline SVG, no script, nothing fetched.

Reliability with the queries behind each dot, where known and unknown queries lie, what acting on the surest costs
(risk-coverage), and misses against false matches (DET).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index import metrics
from index.errors import SettingsError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_SIZE, _MARGIN, _FOOT, _BINS = 300, 56, 60, 20
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #12161d; --soft: #566070; --line: #9aa4b4; --one: #2563b0;
        --two: #b4560f; --warn: #7a4b00; }
@media (prefers-color-scheme: dark) { :root { --paper: #0e1116; --ink: #e9edf3; --soft: #98a3b3; --line: #566173;
        --one: #7db4f5; --two: #f0a060; --warn: #f5cf86; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
       background: var(--paper); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; width: min(26rem, 100%); }
figcaption { font-size: .9rem; color: var(--soft); } svg { width: 100%; height: auto; } svg text { fill: var(--soft); }
.warning { border-left: 4px solid var(--warn); padding-left: .8rem; overflow-wrap: anywhere; }
"""
_KNOWN, _UNKNOWN, _LINE = "var(--one)", "var(--two)", "var(--line)"
_MEASURES = {
    "recall@1": ("Recall@1", "known queries whose label the best hit has"),
    "recall@5": ("Recall@5", "known queries whose label one of the five best hits has"),
    "fpir": ("FPIR", "unknown queries that the decisions let in"),
    "fnir": ("FNIR", "known queries that the decisions miss"),
    "ece": ("Calibration error (ECE)", "average distance between what was said and what happened"),
    "ece_floor": ("its floor", "what a perfect predictor would show on so many queries, by chance"),
    "brier": ("Brier score", "mean squared distance between the probability and what happened"),
    "nll": ("Negative log likelihood", "mean surprise, in nats"),
    "auroc_right_wrong": ("AUROC right / wrong", "how often a right answer got more than a wrong one"),
    "auroc_known_unknown": ("AUROC known / unknown", "how often a known query got less “no match” than an unknown"),
    "fpr_at_95_tpr": ("FPR at 95 % TPR", "unknown queries let through where 95 % of known ones are kept"),
    "aurc": ("AURC", "mean share of wrong answers over all ways to answer only the surest"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Queries an answer was measured on; see `Points`."""

    probability: Floats
    right: Flags
    known: Flags
    weight: Floats


class Points(Protocol):
    """(n,) each: the probability that the top hit is right, whether it was, whether the query is known, its weight."""

    @property
    def probability(self) -> Floats: ...
    @property
    def right(self) -> Flags: ...
    @property
    def known(self) -> Flags: ...
    @property
    def weight(self) -> Floats: ...


def write_page(path: Path, title: str, points: Points, report: Mapping[str, Any], warnings: Sequence[str] = ()) -> None:
    """Writes `page` to a file. Raises `SettingsError`."""
    try:
        path.write_text(page(title, points, report, warnings), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--report {path}: cannot be written ({error.strerror}). Name another file.") from error


def page(title: str, points: Points, report: Mapping[str, Any], warnings: Sequence[str] = ()) -> str:
    """The page as HTML. `report` holds the measures by the names of `index.evaluate`, and "intervals" where known."""
    counts = f"{int(points.known.sum())} known and {int((~points.known).sum())} unknown queries"
    if "source" in (queries := report.get("queries", {})):  # a collection's own, of which some may be imitated
        counts = f"{queries['known']} known queries ({queries['source']}) and {queries['unknowns']}"
    told = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    pictures = [
        (_reliability(points), "Said against happened. On the dashed line the two agree; below, the queries of each."),
        (_histograms(points), "Where known (blue) and unknown (orange) queries lie."),
        (_risk(points), "Act on the surest only: the share answered, and how many of these are wrong."),
        (_det(points), "Each line that could be drawn: known queries missed, unknown queries let in."),
    ]
    figures = "".join(f"<figure>{svg}<figcaption>{escape(said)}</figcaption></figure>" for svg, said in pictures)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>Measured on {escape(counts)}.</p>{told}{_table(report)}{_sets(report)}"
        f'<div class="pictures">{figures}</div></html>\n'
    )


def _table(report: Mapping[str, Any]) -> str:
    intervals = report.get("intervals", {})
    rows = []
    for name, (short, meaning) in _MEASURES.items():
        value = report.get(name)
        if value is None:
            continue
        low_high = intervals.get(name)
        spread = "" if low_high is None else f"{low_high[0]:.4f} to {low_high[1]:.4f}"
        cells = f'<td class="number">{value:.4f}</td><td class="number">{spread}</td><td>{escape(meaning)}</td>'
        rows.append(f'<tr><th scope="row">{escape(short)}</th>{cells}</tr>')
    return _listed(["", "measured", "95 % interval", "in words"], rows)


def _sets(report: Mapping[str, Any]) -> str:
    """What the sets hold beside what they promise, mixed and to known and unknown queries apart."""
    rows = []
    for key, kind in (("sets", "all queries"), ("sets_known_unknown", "known and unknown apart")):
        for promised in report.get(key, []):
            name = f'<th scope="row">{100 * promised["coverage"]:g} % of {kind}</th>'
            if "reason" in promised:
                rows.append(f'<tr>{name}<td colspan="4">{escape(promised["reason"])}</td></tr>')
                continue
            shares = "".join(
                f'<td class="number">{"" if promised[of] is None else f"{promised[of]:.4f}"}</td>'
                for of in ("measured", "known", "unknown")
            )
            rows.append(f'<tr>{name}{shares}<td class="number">{promised["size"]:.2f}</td></tr>')
    if not rows:
        return ""
    head = ["promised to", "held", "of known", "of unknown", "outcomes in it"]
    return f"<h2>Sets of labels</h2>{_listed(head, rows)}"


def _listed(head: Sequence[str], rows: Sequence[str]) -> str:
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f'<div class="scroll"><table><tr>{names}</tr>{"".join(rows)}</table></div>'


def _reliability(points: Points) -> str:
    p, w = points.probability, points.weight
    rows = metrics.reliability(p, points.right, w)
    dots = [(row["probability"], row["frequency"]) for row in rows]
    at = np.minimum((p * _BINS).astype(int), _BINS - 1)
    drawn = [_line([(0, 0), (1, 1)], _LINE, dashed=True), _line(dots, _KNOWN, dots=True)]
    return _frame("said", "happened", drawn, _bars(np.bincount(at, w, _BINS).astype(np.float64), _KNOWN))


def _histograms(points: Points) -> str:
    at = np.minimum((points.probability * _BINS).astype(int), _BINS - 1)
    drawn = []
    for part, colour in ((points.known, _KNOWN), (~points.known, _UNKNOWN)):
        if part.any():
            share = np.bincount(at[part], points.weight[part], _BINS) / points.weight[part].sum()
            steps = [(edge / _BINS, float(share[bin])) for bin in range(_BINS) for edge in (bin, bin + 1)]
            drawn.append(_line(steps, colour))
    return _frame("probability", "share of its kind", drawn)


def _risk(points: Points) -> str:
    curve = metrics.risk_coverage(points.probability, points.right, points.weight)
    drawn = [(point["coverage"], point["risk"]) for point in curve]
    return _frame("share answered", "share of these that is wrong", [_line(drawn, _KNOWN)])


def _det(points: Points) -> str:
    if points.known.all() or not points.known.any():
        return _frame("unknown queries let in", "known queries missed", [])
    order = np.argsort(-points.probability, kind="stable")
    p, w, known = points.probability[order], points.weight[order], points.known[order]
    let_in = np.cumsum(w * ~known) / (w * ~known).sum()
    missed = 1 - np.cumsum(w * (known & points.right[order])) / (w * known).sum()
    lines = np.append(p[1:] != p[:-1], True)  # no line can be drawn between equal probabilities
    curve = [(0.0, 1.0), *_thinned(let_in[lines], missed[lines])]
    return _frame("unknown queries let in", "known queries missed", [_line(curve, _KNOWN)])


def _thinned(x: Floats, y: Floats, most: int = 400) -> list[tuple[float, float]]:
    at = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).astype(int))
    return [(float(x[i]), float(y[i])) for i in at]


def _place(x: float, y: float) -> str:
    return f"{_MARGIN + x * _SIZE:.1f},{10 + (1 - y) * _SIZE:.1f}"


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False, dots: bool = False) -> str:
    path = " ".join(_place(x, y) for x, y in points)
    style = ' stroke-dasharray="5 4"' if dashed else ""
    found = f'<polyline points="{path}" style="fill:none;stroke:{colour}" stroke-width="1.8"{style}/>'
    if dots:
        for x, y in points:
            cx, cy = _place(x, y).split(",")
            found += f'<circle cx="{cx}" cy="{cy}" r="3.5" style="fill:{colour}"/>'
    return found


def _bars(mass: Floats, colour: str) -> str:
    """Bars below the plot, as high as the share of queries in each bin."""
    top, width = 10 + _SIZE + 44, _SIZE / len(mass)
    return "".join(
        f'<rect x="{_MARGIN + at * width + 1:.1f}" y="{top + 50 * (1 - share):.1f}" width="{width - 2:.1f}" '
        f'height="{50 * share:.1f}" style="fill:{colour}" opacity=".6"/>'
        for at, share in enumerate(mass / max(mass.max(), 1e-300))
    )


def _frame(x: str, y: str, drawn: Sequence[str], below: str = "") -> str:
    """Axes from 0 to 1 with their names, what is drawn between them, and what stands below."""
    height = 10 + _SIZE + (_FOOT + 44 if below else 44)
    middle = 10 + _SIZE / 2
    ticks = "".join(
        f'<text x="{_MARGIN + at * _SIZE:.0f}" y="{26 + _SIZE}" text-anchor="middle">{at:g}</text>'
        f'<text x="{_MARGIN - 6}" y="{14 + (1 - at) * _SIZE:.0f}" text-anchor="end">{at:g}</text>'
        for at in (0, 0.25, 0.5, 0.75, 1)
    )
    names = (
        f'<text x="{_MARGIN + _SIZE / 2}" y="{42 + _SIZE}" text-anchor="middle">{escape(x)}</text>'
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(y)}</text>'
    )
    box = f'<rect x="{_MARGIN}" y="10" width="{_SIZE}" height="{_SIZE}" style="fill:none;stroke:{_LINE}"/>'
    return (
        f'<svg viewBox="0 0 {_MARGIN + _SIZE + 12} {height}" role="img" aria-label="{escape(f"{y} against {x}")}" '
        f'font-size="12">{box}{ticks}{names}{"".join(drawn)}{below}</svg>'
    )
