"""`README.md` of a model folder: a model card in the format of sentence-transformers and the Hugging Face Hub."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from index.calibration.conditional_logit import FEW_QUERIES, MIN_QUERIES
from training.reports.report import CHOSEN, MEASURES, trained_rows

CARD = "README.md"


def render_card(record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The card: metadata with the measured figures, how to use the encoder, how it was made."""
    name = Path(record["settings"]["out"]).name
    return f"---\n{_metadata(name, evaluation)}\n---\n\n{_body(name, record, evaluation)}"


def _metadata(name: str, evaluation: Mapping[str, Any]) -> str:
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type="held-out" if kind == "seen" else "unseen-classes",
            dataset_name="held-out rows" if kind == "seen" else "classes never seen in training",
            metric_type=key,
            metric_name=title,
            metric_value=round(evaluation[kind][key]["value"], 4),
        )
        for kind in ("seen", "unseen")
        if kind in evaluation
        for key, title in MEASURES.items()
        if evaluation[kind][key]["value"] is not None
    ]
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "surematch"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


_KINDS = {
    "image": "A picture encoder",
    "frozen": "A picture encoder (another one as it was, and a projection of its vectors)",
}
_USAGE = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")  # this folder, or its name on the Hub
vectors = model.encode(["a text", "another text"], normalize_embeddings=True)"""
_PICTURES = """from pathlib import Path
from index.encoders.by_name import load_encoder  # of surematch

encoder = load_encoder(Path("{name}"))
vectors = encoder.encode_images([Path("a.jpg"), Path("b.jpg")])"""


def _body(name: str, record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    title, kind = _plain(name), record["recipe"]["kind"]
    pictures = kind in _KINDS
    what, data = ("pictures", "pictures/") if pictures else ("texts", "rows.csv")
    maker = _KINDS.get(kind, "A [sentence-transformers](https://www.sbert.net) encoder")
    return f"""# {title}

{maker} that [surematch](#how-it-was-made) trained on
{trained_rows(record):,} rows in {record["data"]["classes"]:,} classes: {what} of one class become neighbours.
{_further(record)}It starts from `{_plain(record["settings"]["encoder"])}`
and was trained with the objective `{record["objective"]["name"]}`.

## Usage

```python
{(_PICTURES if pictures else _USAGE).format(name=_plain(name))}
print(vectors @ vectors.T)  # cosines
```

`surematch index {_code(shlex.quote(name))} {data}` makes a collection of it. {_calibrated(record)}

## How good it is

{_figures(record, evaluation)}

## How it was made

```sh
{record["command"]}
```

{_versions(record)}
"""


def can_calibrate(record: Mapping[str, Any]) -> bool:
    """Whether the training left enough of its rows aside to calibrate a collection of them."""
    return _aside(record) >= FEW_QUERIES


def unseen_would_calibrate(record: Mapping[str, Any]) -> bool:
    """Whether the same training with `--unseen-classes 0.2` would leave enough aside."""
    classes, rows = record["data"]["classes"], record["data"]["rows"]
    return not record["unseen"]["rows"] and classes >= 4 and rows * max(0.2, 2 / classes) >= FEW_QUERIES


def _aside(record: Mapping[str, Any]) -> int:
    aside: int = record["held_out"]["rows"] + record["unseen"]["rows"]
    return aside


def _calibrated(record: Mapping[str, Any]) -> str:
    if FEW_QUERIES <= _aside(record) < MIN_QUERIES:
        return (
            f"Calibrated on the\n{_aside(record)} rows that did not train, it answers with rough probabilities, of the "
            f"best hit alone: {MIN_QUERIES} labelled queries of\nyours make better ones (`--calibrate queries.csv`)."
        )
    if can_calibrate(record):
        return "Calibrated on the rows\nthat did not train, it answers with probabilities."
    return (
        "Too few rows were kept\nfrom training to calibrate it: for probabilities give it labelled queries of yours "
        "(`--calibrate queries.csv`)."
    )


def _further(record: Mapping[str, Any]) -> str:
    """The classes that trained where they are not those of the rows; a line, or nothing."""
    for flag in ("turned-classes", "composed-classes"):
        if record["settings"].get(flag.replace("-", "_")):
            learned = record["data"]["learned_classes"]
            return f"What it learned to tell apart are {learned:,} classes made of these (`--{flag}`).\n"
    return ""


def _figures(record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    kinds = [kind for kind in ("seen", "unseen") if kind in evaluation]
    if not kinds:
        return "No rows were held out, so nothing was measured."
    names = {"seen": "held-out rows", "unseen": "classes never seen"}
    lines = ["| measure | " + " | ".join(f"{names[kind]} (95 %)" for kind in kinds) + " |"]
    lines.append("|---|" + "---|" * len(kinds))
    for key, title in MEASURES.items():
        cells = []
        for kind in kinds:
            value, bounds = evaluation[kind][key]["value"], evaluation[kind][key]["interval"]
            shown = "–" if value is None else f"{value:.3f}"
            cells.append(shown + (f" ({bounds[0]:.3f} – {bounds[1]:.3f})" if bounds else ""))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    counted = ", ".join(f"{evaluation[kind]['queries']:,} queries of {names[kind]}" for kind in kinds)
    chosen = f" {CHOSEN}" if record["unseen"].get("chose_the_weights") else ""
    return "\n".join([*lines, "", f"Measured with {counted}.{chosen} `report.html` shows more."])


def _versions(record: Mapping[str, Any]) -> str:
    return "Versions: " + ", ".join(f"{name} {value}" for name, value in record["versions"].items()) + "."


def _code(content: str) -> str:
    """Text for between two backticks, where no markup is read: one line without others."""
    return " ".join(content.split()).replace("`", "'")


def _plain(content: str) -> str:
    """Text that cannot end what it stands in: no markup, no quotes, one line."""
    return escape(" ".join(content.split()), quote=True).replace("`", "'")
