"""`report.html` of a model folder: what was trained, how good it is, where it errs, and the command that made it.

A pure function of the training record (`training.json`) and the evaluation (`evaluation.json`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from index.metrics import RATES
from training.reports.drawings import Dot, Name, Series, line_chart, roc_chart, scatter
from training.reports.page import bars, figure, page, section, table, text, tile

COLOURED = 8
"""Classes that have a colour and a name on the map."""
BARS, FAULTS = 24, 100
"""Classes drawn as bars, and faulty rows listed, before the rest is counted or folded away."""
CHOSEN = (
    "The classes never seen also chose the weights (--patience), so their figures are the best of several and rather "
    "too high: measure on other classes what must not be."
)
MEASURES = {
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_10": "recall@10",
    "map_at_r": "MAP@R",
    "r_precision": "R-precision",
    "nearest_class_mean": "nearest class mean",
}


def render_report(record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The page. Everything that came from the user's files is escaped."""
    name = Path(record["settings"]["out"]).name
    parts = [
        _tiles(record, evaluation),
        _measures(record, evaluation),
        _curves(record),
        _map(evaluation.get("map", {}), held_out="seen" in evaluation),
        _confusions("Worst confusions", "of held-out rows", evaluation.get("confusions", [])),
        _confusions(
            "Confusions among classes never seen",
            "of rows of the classes kept out of training",
            evaluation.get("unseen", {}).get("confusions", []),
        ),
        _classes(evaluation.get("classes", [])),
        _slices(evaluation.get("slices", [])),
        _verification(evaluation),
        _data(record),
        _made(record),
    ]
    header = (
        '<div class="brand">surematch</div>'
        f"<h1>{text(name)}</h1>"
        f'<p class="lead">{text(record["settings"]["encoder"])} trained with {text(record["objective"]["name"])} on '
        f"{trained_rows(record):,} rows in {record['data']['classes']:,} classes, {record['seconds']:.0f} s.</p>"
    )
    footer = "Every figure on this page is in <code>training.json</code> and <code>evaluation.json</code> beside it."
    return page(f"{name}: training report", header=header, sections=parts, footer=footer)


def trained_rows(record: Mapping[str, Any]) -> int:
    rows: int = record["data"]["rows"] - record["held_out"]["rows"]
    return rows


def _tiles(record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    metrics = record["metrics"]
    tiles = []
    if "seen" in evaluation:
        before = (metrics.get("start") or {}).get("recall_at_1")
        tiles.append(_tile("recall@1, held-out rows", evaluation["seen"]["recall_at_1"], before))
    if "unseen" in evaluation:
        before = metrics["unseen_start"]
        tiles.append(_tile("recall@1, classes never seen", evaluation["unseen"]["recall_at_1"], before["recall_at_1"]))
        tiles.append(_tile("MAP@R, classes never seen", evaluation["unseen"]["map_at_r"], before["map_at_r"]))
    checked = _verified(evaluation)
    if checked:
        where, found = checked[-1]
        pairs = found["genuine_pairs"] + found["impostor_pairs"]
        tiles.append(tile(f"equal error rate, {where}", _percent(found["eer"], 1), f"over {pairs:,} pairs"))
    if not tiles:
        return _nothing_measured(record)
    return '<div class="tiles">' + "".join(tiles) + "</div>"


def _nothing_measured(record: Mapping[str, Any]) -> str:
    share, data = record["held_out"]["share_wanted"], record["data"]
    if share and data["rows"] <= 2 * data["classes"]:
        why = "No class has three different rows, two to train and one to hold out, so nothing was measured. Train with"
    elif share:
        why = f"--held-out {share:g} gives no row of so few, so nothing was measured. Train with a larger share and"
    else:
        why = "No rows were held out, so nothing was measured. Train with --held-out 0.15 and"
    return f'<section><p class="warning">{why} --unseen-classes 0.2 to know how good the encoder is.</p></section>'


def _tile(what: str, measure: Mapping[str, Any], before: float | None) -> str:
    notes = []
    if before is not None and measure["value"] is not None:
        notes.append(f"{before:.3f} before training")
    if measure["interval"]:
        notes.append(f"95 %: {_interval(measure)}")
    return tile(what, _value(measure["value"]), "<br>".join(notes))


def _measures(record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    kinds = [kind for kind in ("seen", "unseen") if kind in evaluation]
    if not kinds:
        return ""
    head = ["measure"]
    for kind in kinds:
        part = evaluation[kind]
        what = "held-out rows" if kind == "seen" else f"{part['classes']} classes never seen"
        counted = f"{part['queries']:,} queries"
        if kind == "seen" and part["queries"] < record["held_out"]["rows"]:
            counted += f" drawn of {record['held_out']['rows']:,}"
        head += [f"{what}<br><small>{counted}</small>", f"95 % over {part['interval_over']}"]
    rows = [
        [name, *(cell for kind in kinds for cell in _cells(evaluation[kind][key]))] for key, name in MEASURES.items()
    ]
    lead = (
        "Held-out rows look for their class among all training rows; rows of classes never seen among each other. The "
        "intervals are over queries, and for classes never seen over classes, which differ more: exact ones of rates "
        "over queries, otherwise bootstrapped, and none of what is the same everywhere."
    )
    if record["unseen"].get("chose_the_weights"):
        lead += f" {CHOSEN}"
    return section("How good it is", lead, table(head, rows))


def _cells(measure: Mapping[str, Any]) -> tuple[str, str]:
    return _value(measure["value"]), f"<small>{_interval(measure)}</small>"


def _curves(record: Mapping[str, Any]) -> str:
    metrics = record["metrics"]
    curve: Sequence[Mapping[str, float]] = metrics["loss"]
    loss = [(point["step"], point["loss"]) for point in curve if "loss" in point]
    figures = []
    if len(loss) > 1:
        drawn = line_chart([Series(loss)], title="loss over the steps", x="step", y="loss")
        moves = "; the scale moves while it learns, so it may rise" if record["objective"].get("dynamic") else ""
        figures.append(figure(f"Loss, mean of the steps before each point{moves}", drawn))
    unseen = [(point["step"], point["unseen_map_at_r"]) for point in curve if "unseen_map_at_r" in point]
    if "unseen_start" in metrics:
        last = max((step for step, _ in [*loss, *unseen]), default=1.0)
        first, end = metrics["unseen_start"]["map_at_r"], metrics["unseen"]["map_at_r"]
        points = [(0.0, first), *unseen]
        if not unseen or unseen[-1][0] < last:
            points.append((last, end))
        drawn = line_chart([Series(points, "two", dots=True)], title="MAP@R on classes never seen", x="step", y="MAP@R")
        figures.append(figure("MAP@R on classes never seen", drawn))
    if not figures:
        return ""
    return section("How it learned", "", f'<div class="pair">{"".join(figures)}</div>')


def _map(content: Mapping[str, Any], *, held_out: bool) -> str:
    points: Sequence[Mapping[str, Any]] = content.get("points", [])
    if len(points) < 3:
        return ""
    present = {point["label"] for point in points if not point["unseen"]}
    named = [name for name in content["named"] if name in present][:COLOURED]
    style = {name: f"c{at}" for at, name in enumerate(named)}
    dots = [
        Dot(
            point["x"],
            point["y"],
            f"{point['label']}: {_short(point['text'], 120)}",
            "unseen" if point["unseen"] else style.get(point["label"], ""),
        )
        for point in points
    ]
    names = []
    for name in named:
        own = [point for point in points if point["label"] == name and not point["unseen"]]
        across, up = sum(point["x"] for point in own) / len(own), sum(point["y"] for point in own) / len(own)
        names.append(Name(across, up, _short(name, 34), style[name]))
    explained = sum(content["explained"])
    which = "rows that did not train" if held_out else "rows it was trained on"
    lead = f"The two directions of most variance (PCA, {_percent(explained)} of it) of {len(points):,} {which}."
    if named:
        lead += " Coloured: the classes confused most."
    if any(point["unseen"] for point in points):
        lead += " Rings are rows of classes never seen."
    drawn = scatter(dots, names, title="map of the embedding")
    return section("The embedding", lead, f'<div class="scroll">{drawn}</div>')


def _confusions(title: str, of: str, found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    cards = []
    for pair in found:
        examples = "".join(
            f'<div class="example">{text(_short(example["text"], 220))}'
            f'<div class="near">closest: {text(_short(example["closest"], 220))}</div></div>'
            for example in pair["examples"]
        )
        cards.append(
            f'<div class="confusion"><h3>{text(pair["label"])} <span class="arrow">taken for</span> '
            f'{text(pair["taken_for"])}</h3><div class="share">{pair["queries"]} of {pair["of"]} queries</div>'
            f"{examples}</div>"
        )
    lead = f"Counted {of} whose nearest row has another class. Some of these may be labelled wrongly: look at them."
    return section(title, lead, f'<div class="confusions">{"".join(cards)}</div>')


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    if not classes:
        return ""
    drawn = bars(
        (text(row["label"]), row["recall_at_1"], f"{_percent(row['recall_at_1'])} of {row['queries']}")
        for row in classes[:BARS]
    )
    rows = (
        [
            text(row["label"]),
            f"{row['rows']:,}",
            f"{row['queries']:,}",
            _value(row["recall_at_1"]),
            _value(row["map_at_r"]),
        ]
        for row in classes
    )
    everything = table(["class", "training rows", "queries", "recall@1", "MAP@R"], rows)
    title = f"The {BARS} hardest of {len(classes):,} classes" if len(classes) > BARS else "Class by class"
    folded = f"<details><summary>All {len(classes):,} classes in a table</summary>{everything}</details>"
    return section(title, "Recall@1 of the held-out rows of each class, the lowest first.", drawn + folded)


def _slices(slices: Sequence[Mapping[str, Any]]) -> str:
    if not slices:
        return ""
    rows = (
        [
            f"{part['rows']} rows",
            f"{part['classes']:,}",
            f"{part['queries']:,}",
            _value(part["recall_at_1"]),
            _value(part["map_at_r"]),
        ]
        for part in slices
    )
    lead = "Held-out rows by how many rows of their class trained: whether the small classes pay for the large."
    return section("By size of class", lead, table(["class size", "classes", "queries", "recall@1", "MAP@R"], rows))


def _verified(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    names = {"seen": "held-out rows", "unseen": "classes never seen"}
    return [
        (name, evaluation[kind]["verification"])
        for kind, name in names.items()
        if kind in evaluation and evaluation[kind]["verification"]
    ]


def _verification(evaluation: Mapping[str, Any]) -> str:
    found = _verified(evaluation)
    if not found:
        return ""
    styles = {"held-out rows": "one", "classes never seen": "two"}
    drawn = [(name, result["roc"]) for name, result in found if result["roc"]]
    curves = [Series([(far, tar) for far, tar in roc], styles[name]) for name, roc in drawn]
    keys = "".join(f'<span class="key"><i class="{styles[name]}"></i>{name}</span>' for name, _ in drawn)
    rows = [
        ["rows, each compared with all", *(_of(result["rows"], result["of"]) for _, result in found)],
        ["pairs of one class", *(f"{result['genuine_pairs']:,}" for _, result in found)],
        ["pairs of two classes", *(f"{result['impostor_pairs']:,}" for _, result in found)],
        ["equal error rate", *(_percent(result["eer"], 1) for _, result in found)],
    ]
    for at, far in enumerate(RATES):
        name = f"true accepts at {_percent(far, 1 if far < 0.01 else 0)} false accepts"
        rows.append([name, *(_rate(result["tar_at_far"][at]) for _, result in found)])
    lead = (
        "Are two rows of one class? Every pair of rows is asked, with the cosine as the answer. A rate that fewer than "
        "30 wrong acceptances would decide is not given (the rule of 30, which is about independent pairs: these share "
        "rows, and say less)."
    )
    listed = table(["", *(name for name, _ in found)], rows)
    caption = f"True accept rate over the false accept rate, from the least that the pairs support. {keys}"
    chart = "verification: true accepts over false accepts"
    drawing = figure(caption, roc_chart(curves, title=chart)) if curves else ""
    return section("Verification", lead, f'<div class="pair">{drawing}{listed}</div>')


def _of(count: int, everything: int) -> str:
    return f"{count:,}" if count == everything else f"{count:,} <small>drawn of {everything:,}</small>"


def _rate(rate: Mapping[str, Any]) -> str:
    return _percent(rate["tar"], 1) if rate["supported"] else f"<small>needs {rate['pairs_needed']:,} pairs</small>"


def _data(record: Mapping[str, Any]) -> str:
    faults: Sequence[Mapping[str, Any]] = record["data"]["report"]
    data, unseen = record["data"], record["unseen"]
    counts = f"{data['rows']:,} rows in {data['classes']:,} classes, {record['held_out']['rows']:,} of them held out."
    if unseen["rows"]:
        counts += f" {unseen['rows']:,} more rows in {len(unseen['labels']):,} classes never seen."
    said = "".join(f'<p class="warning">{text(warning)}</p>' for warning in record["warnings"])
    if not faults:
        return section("The data", counts, said + '<p class="good">No row looked faulty.</p>')
    kinds = Counter((fault["kind"], fault["left_out"]) for fault in faults)
    summary = "".join(
        f'<div class="fault"><span class="count">{count:,}</span><span>{escape(kind)}'
        f'<span class="soft">, {"left out" if left_out else "trained on"}</span></span></div>'
        for (kind, left_out), count in kinds.most_common()
    )
    rows = [
        [
            text(_short(fault["text"], 120)),
            text(fault["label"] or "–"),
            escape(fault["kind"]),
            text(f"{Path(fault['file']).name} line {fault['line']}"),
        ]
        for fault in faults[:FAULTS]
    ]
    more = f", the first {FAULTS} of {len(faults):,}; the others are in training.json" if len(faults) > FAULTS else ""
    listed = table(["text", "label", "what", "where"], rows)
    return section("The data", counts, said + summary + f"<details><summary>The rows{more}</summary>{listed}</details>")


def _made(record: Mapping[str, Any]) -> str:
    used = {**record["recipe"], **{k: v for k, v in record["objective"].items() if k != "name"}, "seed": record["seed"]}
    settings = table(["setting", "value"], ([escape(name), text(value)] for name, value in used.items()))
    versions = table(["package", "version"], ([escape(k), text(v)] for k, v in record["versions"].items()))
    content = (
        f"<pre>{escape(record['command'])}</pre>"
        f"<p class='soft'>Data fingerprint: <code>{escape(record['data']['fingerprint'])}</code></p>"
        f"<details><summary>Settings in effect</summary>{settings}</details>"
        f"<details><summary>Versions</summary>{versions}</details>"
    )
    return section("The command that made it", "", content)


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(share: float, digits: int = 0) -> str:
    return f"{share * 100:.{digits}f}\u202f%"


def _interval(measure: Mapping[str, Any]) -> str:
    bounds = measure["interval"]
    return "–" if bounds is None else f"{bounds[0]:.3f} – {bounds[1]:.3f}"


def _short(content: str, most: int) -> str:
    line = " ".join(content.split())
    return line if len(line) <= most else line[: most - 1] + "…"
