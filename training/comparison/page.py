"""`compare.html`: the losses of a comparison in one plot and one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from training.reports.drawings import dot_plot
from training.reports.page import figure, page, section, table


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The page of a comparison, as `training.comparison.compare.compare_losses` makes it."""
    losses: Sequence[Mapping[str, Any]] = comparison["losses"]
    runs: Sequence[Mapping[str, Any]] = comparison["runs"]
    best = max(losses, key=lambda entry: entry["unseen_map_at_r"]["mean"])
    points = {
        entry["loss"]: [run["unseen_map_at_r"] for run in runs if run["loss"] == entry["loss"]] for entry in losses
    }
    before = {run["seed"]: run["before"]["unseen_map_at_r"] for run in runs}
    points = {"before training": list(before.values()), **points}
    seeds = losses[0]["seeds"]
    header = (
        '<div class="brand">surematch</div><h1>Which loss finds classes it has never seen?</h1>'
        f'<p class="lead">{len(losses)} losses, {seeds} {"seed" if seeds == 1 else "seeds"} each, the same rows, '
        f"splits and start. Best on unseen classes: {escape(best['loss'])}, MAP@R "
        f"{best['unseen_map_at_r']['mean']:.3f}.</p>"
    )
    plot = figure(
        "MAP@R on classes never seen: a dot for each seed, a bar for their mean",
        dot_plot(points, title="MAP@R on classes never seen, by loss"),
    )
    head = [
        "loss",
        "seen recall@1",
        "unseen recall@1",
        "unseen MAP@R",
        f"against {escape(losses[0]['loss'])}",
        "seconds",
    ]
    rows = [row_of(entry, best=entry is best, first=entry is losses[0]) for entry in losses]
    lead = (
        "Mean ± standard deviation over the seeds. Each seed leaves out its own classes, and which they are moves "
        "MAP@R more than a loss does; so the column before the last takes differences within a seed."
    )
    parts = [
        section("On classes never seen", "", plot),
        section("In figures", lead, table(head, rows)),
        section("The command that made it", "", f"<pre>{escape(comparison['command'])}</pre>"),
    ]
    footer = "Every run has a report of its own in the folder beside this page."
    return page("Losses compared", header=header, sections=parts, footer=footer)


def row_of(entry: Mapping[str, Any], *, best: bool, first: bool) -> list[str]:
    """The cells of one loss, as HTML."""
    found = show(entry["unseen_map_at_r"])
    return [
        escape(entry["loss"]),
        show(entry["seen_recall_at_1"]),
        show(entry["unseen_recall_at_1"]),
        f'<span class="best">{found}</span>' if best else found,
        "–" if first else show(entry["ahead"], signed=True),
        show(entry["seconds"], digits=0),
    ]


def show(measure: Mapping[str, float | None], *, digits: int = 3, signed: bool = False) -> str:
    """A mean with its standard deviation, where there is one."""
    mean, deviation = measure["mean"], measure["sd"]
    if mean is None:
        return "–"
    text = f"{mean:+.{digits}f}" if signed else f"{mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"
