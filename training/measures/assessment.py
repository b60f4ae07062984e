"""Everything measured on a trained encoder, as one JSON object: `evaluation.json` of the model folder.

Seen classes are measured with held-out rows that look for their class among the training rows; classes never seen with
each of their rows looking among all the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.measures.bootstrap import interval
from training.measures.breakdown import by_size, confusions, per_class
from training.measures.retrieval import (
    DEPTHS,
    Classes,
    Flags,
    Ranking,
    Vectors,
    classes_by_mean,
    classes_by_mean_of_others,
    rank,
)
from training.measures.verification import verification

PAIRED = 10_000
"""Rows whose pairs are compared, drawn where there are more: fifty million pairs in about a second."""
DRAWN = 1_500
"""Rows drawn on the embedding map."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Rows with their vectors: texts (n), vectors (n, d) float32 unit rows, classes (n,) int64, labels by class."""

    texts: Sequence[str]
    vectors: Vectors
    classes: Classes
    labels: Sequence[str]


def assess(
    held_out: Embedded | None,
    gallery: Embedded,
    ranking: Ranking | None,
    unseen: Embedded | None,
    trained: Classes,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures an encoder.

    Args:
        held_out: rows of the trained classes that it has not seen, None without any.
        gallery: training rows they are looked for in.
        ranking: what they find there (`rank`), None without any.
        unseen: rows of classes it has not seen, None without any.
        trained: (classes,) training rows of each trained class.
    """
    content: dict[str, Any] = {}
    if held_out is not None and ranking is not None:
        right_mean = classes_by_mean(held_out.vectors, gallery.vectors, gallery.classes) == held_out.classes
        content["seen"] = _measures(ranking, right_mean[ranking.query], None)
        content["seen"]["verification"] = _verify(held_out, seed)
        content |= _details(held_out, gallery, ranking, trained)
    if unseen is not None:
        ranking = rank(unseen.vectors, unseen.classes)
        right_mean = classes_by_mean_of_others(unseen.vectors, unseen.classes) == unseen.classes
        content["unseen"] = _measures(ranking, right_mean[ranking.query], unseen.classes[ranking.query])
        content["unseen"]["classes"] = len(np.unique(unseen.classes))
        content["unseen"]["verification"] = _verify(unseen, seed)
        truth, found = unseen.classes[ranking.query], unseen.classes[ranking.nearest]
        texts = [unseen.texts[at] for at in ranking.query]
        closest = [unseen.texts[at] for at in ranking.nearest]
        content["unseen"]["confusions"] = confusions(truth, found, texts, closest, unseen.labels)
    shown = held_out if held_out is not None else gallery
    content["map"] = _map(shown, unseen, content.get("confusions", []), seed)
    return content


def _measures(ranking: Ranking, right_mean: Flags, groups: Classes | None) -> dict[str, Any]:
    """Each measure with its interval: over queries, or over the classes `groups`."""
    columns: dict[str, NDArray[Any]] = {f"recall_at_{k}": ranking.recall[:, at] for at, k in enumerate(DEPTHS)}
    columns |= {"map_at_r": ranking.average_precision, "r_precision": ranking.r_precision}
    columns["nearest_class_mean"] = right_mean
    measured: dict[str, Any] = {
        "queries": len(ranking.query),
        "interval_over": "queries" if groups is None else "classes",
    }
    for name, values in columns.items():
        value = float(np.mean(values)) if len(values) else None
        measured[name] = {"value": value, "interval": interval(values, groups)}
    return measured


def _verify(rows: Embedded, seed: int) -> dict[str, Any] | None:
    count = len(rows.vectors)
    drawn = np.arange(count)
    if count > PAIRED:
        drawn = np.sort(np.random.default_rng(seed).choice(count, PAIRED, replace=False))
    result = verification(rows.vectors[drawn], rows.classes[drawn])
    return None if result is None else {"rows": len(drawn), "of": count, **result.as_json()}


def _details(held_out: Embedded, gallery: Embedded, ranking: Ranking, trained: Classes) -> dict[str, Any]:
    truth, found = held_out.classes[ranking.query], gallery.classes[ranking.nearest]
    right, precision = ranking.recall[:, 0], ranking.average_precision
    texts = [held_out.texts[at] for at in ranking.query]
    closest = [gallery.texts[at] for at in ranking.nearest]
    return {
        "confusions": confusions(truth, found, texts, closest, held_out.labels),
        "classes": per_class(truth, right, precision, trained, held_out.labels),
        "slices": by_size(truth, right, precision, trained),
    }


def _map(seen: Embedded, unseen: Embedded | None, confused: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The two directions of most variance, with a sample of rows on them; the worst-confused classes by name."""
    parts = [seen] if unseen is None else [seen, unseen]
    generator = np.random.default_rng(seed)
    most = DRAWN // len(parts)
    rows = [(part, at) for part in parts for at in np.sort(generator.permutation(len(part.vectors))[:most]).tolist()]
    vectors = np.array([part.vectors[at] for part, at in rows], dtype=np.float64)
    centred = vectors - vectors.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    if len(axes) < 2:
        return {"points": [], "explained": [], "named": []}
    total = float((lengths**2).sum())
    places = centred @ axes[:2].T
    named = list(dict.fromkeys(name for pair in confused for name in (pair["label"], pair["taken_for"])))
    points = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "label": part.labels[part.classes[at]],
            "text": part.texts[at],
            "unseen": part is unseen,
        }
        for (part, at), (x, y) in zip(rows, places.tolist(), strict=True)
    ]
    explained = [round(float(length**2) / total, 4) if total else 0.0 for length in lengths[:2]]
    return {"points": points, "explained": explained, "named": named}
