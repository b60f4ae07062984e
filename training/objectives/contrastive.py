"""The contrastive losses of sentence-transformers by name, and labelled rows in the shape each of them wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch import nn

Shape = Literal["labelled", "grouped", "pairs", "scored pairs", "triplets"]
"""labelled: text, label. grouped: the same, several rows of a class in every batch. pairs: two texts of one class.
scored pairs: two texts and 1 for one class, 0 for two. triplets: two texts of one class and one of another."""


def multiple_negatives_ranking(model: SentenceTransformer, classes: int, scale: float = 20.0) -> nn.Module:
    """Cross entropy of s cos over the batch's second texts (InfoNCE; Henderson et al. 2017)."""
    loss: nn.Module = losses.MultipleNegativesRankingLoss(model, scale=scale)
    return loss


def batch_all_triplet(model: SentenceTransformer, classes: int, margin: float = 0.2) -> nn.Module:
    """All triplets of a batch, cosine distance (Hermans, Beyer & Leibe 2017)."""
    return _triplets(losses.BatchAllTripletLoss, model, margin=margin)


def batch_hard_triplet(model: SentenceTransformer, classes: int, margin: float = 0.2) -> nn.Module:
    """The hardest triplet of each row, cosine distance (Hermans, Beyer & Leibe 2017)."""
    return _triplets(losses.BatchHardTripletLoss, model, margin=margin)


def batch_semi_hard_triplet(model: SentenceTransformer, classes: int, margin: float = 0.2) -> nn.Module:
    """Negatives farther than the positive, but within the margin (Schroff, Kalenichenko & Philbin 2015)."""
    return _triplets(losses.BatchSemiHardTripletLoss, model, margin=margin)


def batch_hard_soft_margin_triplet(model: SentenceTransformer, classes: int) -> nn.Module:
    """The hardest triplet of each row under log(1 + exp(.)) (Hermans, Beyer & Leibe 2017)."""
    return _triplets(losses.BatchHardSoftMarginTripletLoss, model)


def contrastive(model: SentenceTransformer, classes: int, margin: float = 0.5) -> nn.Module:
    """Pairs together or at least the margin apart (Hadsell, Chopra & LeCun 2006)."""
    loss: nn.Module = losses.ContrastiveLoss(model, margin=margin)
    return loss


def online_contrastive(model: SentenceTransformer, classes: int, margin: float = 0.5) -> nn.Module:
    """Contrastive loss of the batch's hard pairs alone."""
    loss: nn.Module = losses.OnlineContrastiveLoss(model, margin=margin)
    return loss


def cosent(model: SentenceTransformer, classes: int, scale: float = 20.0) -> nn.Module:
    """CoSENT: every pair of one class closer than every pair of two."""
    loss: nn.Module = losses.CoSENTLoss(model, scale=scale)
    return loss


def triplet(model: SentenceTransformer, classes: int, margin: float = 0.2) -> nn.Module:
    """Random triplets, cosine distance."""
    metric = losses.TripletDistanceMetric.COSINE
    loss: nn.Module = losses.TripletLoss(model, distance_metric=metric, triplet_margin=margin)
    return loss


def _triplets(kind: Callable[..., Any], model: SentenceTransformer, **options: float) -> nn.Module:
    metric = losses.BatchHardTripletLossDistanceFunction.cosine_distance
    loss: nn.Module = kind(model, distance_metric=metric, **options)
    return loss


def reshape(texts: Sequence[str], classes: Sequence[int], shape: Shape, seed: int) -> dict[str, list[Any]]:
    """Columns of a data set of `shape`, one row for each text (its anchor), partners drawn with `seed`.

    Every class must have two rows where partners of the same class are wanted; a scored pair is of one class or of two
    with equal odds. The last column, `row`, holds the anchor's position.
    """
    rows = list(range(len(texts)))
    if shape in ("labelled", "grouped"):
        return {"text": list(texts), "label": list(classes), "row": rows}
    generator = np.random.default_rng(seed)
    codes = np.asarray(classes, dtype=np.int64)
    same = _partner_of_same_class(codes, generator)
    other = _partner_of_other_class(codes, generator)
    if shape == "scored pairs":
        alike = generator.random(len(codes)) < 0.5
        partner = np.where(alike, same, other)
        columns: dict[str, list[Any]] = {"anchor": list(texts), "partner": [texts[at] for at in partner]}
        return {**columns, "label": alike.astype(float).tolist(), "row": rows}
    columns = {"anchor": list(texts), "positive": [texts[at] for at in same]}
    if shape == "triplets":
        columns["negative"] = [texts[at] for at in other]
    return {**columns, "row": rows}


def _partner_of_same_class(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Another position of the same class, uniformly; a class of one row gives its own."""
    partner = np.empty(len(codes), dtype=np.int64)
    for code in np.unique(codes):
        members = generator.permutation(np.flatnonzero(codes == code))
        step = 1 + generator.integers(max(len(members) - 1, 1))
        partner[members] = np.roll(members, step)
    return partner


def _partner_of_other_class(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A position of another class, uniformly over the rows of all others. There must be two classes."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    start = np.cumsum(sizes) - sizes
    draw = (generator.random(len(codes)) * (len(codes) - sizes[codes])).astype(np.int64)
    draw += np.where(draw >= start[codes], sizes[codes], 0)
    return order[draw]
