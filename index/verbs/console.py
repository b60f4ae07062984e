"""What people see in a terminal: progress, answers, and what a collection or an evaluation amounts to."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from index.answer import Answer, Explanation
from index.calibration.sources import HIDDEN, Progress
from index.calibration.thresholds import IMITATED, Threshold
from index.verbs.terminal import Terminal, styled

_BAR = 20
_EXPLAINED = 5
_FILE = "SUREMATCH_PROGRESS"


def stopped(out: Path, resumable: bool) -> int:
    """Says after Ctrl-C how to go on with what was to be written to `out`; returns the exit code."""
    rest = "add --resume to the same command to continue" if resumable else "nothing to continue"
    Terminal(stderr=True).print(f"Stopped. Nothing was written to {out}; {rest}.")
    return 130


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A progress callback that draws one bar a step, on stderr so that stdout stays clean for programs.

    Draws nothing where the progress is noted instead, see `note_progress`: there, stderr is a log.
    """
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Terminal(stderr=True), disable=quiet or noted()) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, of: int) -> None:
            if what not in tasks:
                # what an interrupted run had done is no measure of this one's speed
                tasks[what] = bars.add_task(what, total=of, completed=done, rate="")
            note_progress(what, done, of)
            speed = bars.tasks[tasks[what]].speed
            bars.update(tasks[what], completed=done, total=of, rate=f"{speed:,.0f}/s" if speed else "")

        yield report


def noted() -> bool:
    """Whether who started this process reads its progress from a file."""
    return bool(os.environ.get(_FILE))


def note_progress(what: str, done: int, of: int) -> None:
    """Leaves how far it is in the file that `SUREMATCH_PROGRESS` names, for who started this process."""
    if file := os.environ.get(_FILE):
        beside = Path(f"{file}.{os.getpid()}")
        with suppress(OSError):  # a full disk must not end the work because of a number
            beside.write_text(json.dumps({"what": what, "done": done, "of": of}), encoding="utf-8")
            beside.replace(file)


def verdict(answer: Answer) -> str:
    """The decision in words: "match: turn_on", "no match", or that no probability can be given."""
    if answer.decision is None:
        return "not calibrated"
    name = answer.decision.label or answer.decision.id
    return "no match" if name is None else f"match: {name}"


def percent(share: float | None) -> str:
    """With as many digits as it was asked with: 0.9 as "90%", 0.997 as "99.7%"."""
    return "" if share is None else f"{100 * share:.6g}%"


def at_least(probability: float) -> str:
    """Four digits, rounded up, so that what is printed keeps what the line promises; more where that would say 1."""
    digits = 4
    while (shown := math.ceil(probability * 10**digits - 1e-9) / 10**digits) >= 1 > probability and digits < 12:
        digits += 1
    return f"{shown:.{digits}f}"


def in_percent(probability: float) -> str:
    """With one digit; what is not certain never reads as 0 % or 100 %."""
    if 0 < probability < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < probability < 1 else f"{probability:.1%}"


def bar(probability: float) -> str:
    """A probability as a bar of fixed width and a percentage."""
    full = round(probability * _BAR)
    return f"{'█' * full}{'·' * (_BAR - full)} {in_percent(probability):>6}"


def show_answer(out: Terminal, text: str, answer: Answer) -> None:
    """One query's answer: the verdict, then the hits with score and probability."""
    sure = f"  {in_percent(answer.decision.probability)}" if answer.decision else ""
    out.print(f"\n{text}", style="bold")
    out.print(f"  {verdict(answer)}{sure}")
    if answer.reason:
        out.print(f"  {answer.reason}", style="yellow")
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("", "probability", "score", "label", "text or id"):  # the numbers never give way to long labels
        number = heading in ("probability", "score")
        table.add_column(heading, justify="right" if heading == "score" else "left", no_wrap=number, overflow="fold")
    for hit in answer.hits:
        p = "—" if hit.probability is None else bar(hit.probability)
        table.add_row("", p, f"{hit.score:.3f}", hit.label or hit.id, hit.text or hit.id)
    if answer.no_match is not None:
        table.add_row("", bar(answer.no_match), "", styled("no match", "italic"), "")
    out.print(table)
    if answer.prediction_set is not None:
        names = [entry.label or entry.id or "" for entry in answer.prediction_set]
        names += ["no match"] if answer.set_has_no_match else []
        out.print(f"  {percent(answer.coverage)} set: {', '.join(names)}")
    if answer.explanation is not None:
        _show_explanation(out, answer.explanation)
    for warning in answer.warnings:
        out.print(f"  {warning}", style="yellow")


def _show_explanation(out: Terminal, why: Explanation) -> None:
    """The likeliest outcomes, their evidence, and the items that made it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("why", "logit", "best", "pooled", "centroid", "items (share of the pooled evidence)"):
        table.add_column(heading, justify="left" if heading[0] in "wi" else "right", overflow="fold")
    for entry in why.labels[:_EXPLAINED]:
        items = ", ".join(f"{item.id} {item.share_32:.0%}" for item in entry.items[:3])
        logit = "none" if entry.logit is None else f"{entry.logit:.2f}"
        evidence = (f"{entry.evidence[name]:.3f}" for name in ("best", "pooled_32", "centroid"))
        name = entry.label or entry.id or "" if entry.answerable else styled("not shown", "italic")
        table.add_row(name, logit, *evidence, items)
    table.add_row(
        styled("no match", "italic"), f"{why.no_match_logit:.2f}", "", "", "", f"background {why.background:.3f}"
    )
    out.print(table)


def show_collection(out: Terminal, built: dict[str, Any], path: Path) -> None:
    """What `surematch index` made, in plain words."""
    size = f"{built['items']} items, {built['labels']} labels, {built['engine']}"
    out.print(styled(f"{path}:", "bold"), size)
    report = built["calibration"]
    if report is None:
        out.print(f"Not calibrated, so it shows no probabilities. {built['reason']}", style="yellow")
    else:
        queries = report["queries"]
        out.print(
            f"Calibrated on {queries['known']} known queries ({queries['source']}) and {queries['unknowns']}, for a "
            f"mix with {percent(queries['unknown_share'])} unknown queries.",
        )
        out.print(_honesty(report))
    name = shlex.quote(str(path))
    for warning in built["warnings"]:
        out.print(warning, style="yellow")
    asked = "PICTURE" if built["encoder"]["modality"] == "image" else '"..."'
    out.print(f"Ask it:   surematch search {name} {asked}\nServe it: surematch serve {name}")


def show_threshold(out: Terminal, found: Threshold, calibration: str | None, warnings: Sequence[str]) -> None:
    """A threshold and what it rests on, in plain words, with the id of the `calibration` and its `warnings`."""
    out.print(
        "Call the first hit a match when its probability is at least ",
        styled(at_least(found.probability), "bold"),
        ".",
        sep="",
    )
    out.print(
        f"On the held-out calibration queries: {found.promised} {found.measured:.4f} (95 % interval {found.low:.4f} to "
        f"{found.high:.4f}).",
    )
    fpir = "unmeasured" if found.fpir is None else f"{found.fpir:.2%}"
    called = "No query is called a match"
    if found.precision is not None:
        called = f"{found.accepted:.1%} of queries are called a match, {found.precision:.2%} of them rightly"
    out.print(f"{called}; {found.miss_rate:.2%} of known queries are missed, {fpir} of unknown ones let in.")
    out.print(f"It is a line of calibration {calibration}: draw it again after a compaction or a recalibration.")
    told = found.assumes == IMITATED and any(HIDDEN in warning for warning in warnings)
    if found.assumes is not None and not told:
        out.print(styled("Mind:", "yellow"), found.assumes)
    for warning in warnings:
        out.print(warning, style="yellow")


def show_evaluation(out: Terminal, report: dict[str, Any]) -> None:
    """What `surematch evaluate` measured, in plain words and a reliability table."""
    queries = report["queries"]
    out.print(f"{queries['known']} known and {queries['unknown']} unknown queries")
    if report["recall@1"] is not None:
        out.print(f"recall@1 {report['recall@1']:.4f}   recall@5 {report['recall@5']:.4f}")
    if not report["calibrated"]:
        out.print(str(report["reason"]), style="yellow")
    else:
        out.print(_honesty(report))
    for warning in report["warnings"]:
        out.print(warning, style="yellow")
    if not report["calibrated"]:
        return
    for sets, promised in (("sets", "sets"), ("sets_known_unknown", "sets for known and unknown apart")):
        for measured in report[sets]:
            said = measured.get("reason") or _coverage(measured)
            out.print(f"{percent(measured['coverage'])} {promised}: {said}")
    _show_reliability(out, report["reliability"], "Of the answers given p, how many were right")


def show_pairs(out: Terminal, report: dict[str, Any]) -> None:
    """What `surematch evaluate --pair-text` measured, in plain words and a reliability table."""
    spread, base = report["probabilities"], report["base_rate"]
    out.print(f"{report['pairs']} pairs, {report['same_share']:.1%} of one class")
    out.print(
        f"Calibration error (ECE) {report['ece']:.4f}; a perfect one would show {report['ece_floor']:.4f} here (the "
        f"cosine taken at its word: {report['raw_cosine_ece']:.4f}).\n"
        f"Brier score {report['brier']:.4f}, {base['brier']:.4f} by the base rate alone; AUROC {report['auroc']:.4f}.\n"
        f"90 % of the probabilities lie between {spread['5%']:.1%} and {spread['95%']:.1%}.",
    )
    for line in report["tar_at_far"]:
        if line["supported"]:
            out.print(
                f"Accepting cosines from {line['threshold']:.3f} takes {percent(line['far'])} of the pairs of two "
                f"classes for one (FAR) and accepts {line['tar']:.1%} of those of one (TAR).",
            )
    for warning in report["warnings"]:
        out.print(warning, style="yellow")
    _show_reliability(out, report["reliability"], "Of the pairs given p, how many were of one class")


def _show_reliability(out: Terminal, rows: list[dict[str, float]], title: str) -> None:
    table = Table("said", "happened", "", title=title, title_justify="left")
    for row in rows:
        table.add_row(f"{row['probability']:.3f}", f"{row['frequency']:.3f}", bar(row["frequency"]))
    out.print(table)


def _coverage(measured: dict[str, Any]) -> str:
    apart = [f"{kind} {measured[kind]:.1%}" for kind in ("known", "unknown") if measured[kind] is not None]
    return f"held the truth {measured['measured']:.1%} ({', '.join(apart)}), {measured['size']:.2f} outcomes"


def _honesty(report: dict[str, Any]) -> str:
    said = f"Calibration error (ECE) {report['ece']:.4f}; a perfect one would show {report['ece_floor']:.4f} here."
    if report["auroc_known_unknown"] is not None:
        said += f" Known told from unknown: AUROC {report['auroc_known_unknown']:.4f}."
    if report.get("fpir") is not None and report.get("fnir") is not None:
        said += (
            f" The decisions let in {report['fpir']:.1%} of the unknown (FPIR) and miss {report['fnir']:.1%} of the "
            "known (FNIR)."
        )
    return said
