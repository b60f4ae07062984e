from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import training.evaluation
from training.evaluation import nearest_class_mean, retrieval


def unit(generator: np.random.Generator, n: int, d: int) -> np.ndarray:
    vectors = generator.normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reference(queries, query_classes, gallery, gallery_classes, leave_self_out):
    """Recall@1 and MAP@R from their definitions, one query at a time."""
    recalls, precisions = [], []
    for i, (query, wanted) in enumerate(zip(queries, query_classes, strict=True)):
        others = [j for j in range(len(gallery)) if not (leave_self_out and i == j)]
        ranked = sorted(others, key=lambda j: -float(query.astype(np.float64) @ gallery[j].astype(np.float64)))
        right = [gallery_classes[j] == wanted for j in ranked]
        if not any(right):
            continue
        recalls.append(right[0])
        r = sum(right)
        precisions.append(sum(np.mean(right[: k + 1]) for k in range(r) if right[k]) / r)
    return np.mean(recalls), np.mean(precisions), len(recalls)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 7))
def test_retrieval_agrees_with_its_definition(seed: int, leave_self_out: bool, block: int) -> None:
    generator = np.random.default_rng(seed)
    queries, query_classes = unit(generator, 12, 3), generator.integers(0, 4, 12)
    query_classes[0] = query_classes[1]
    if leave_self_out:
        gallery, gallery_classes = queries, query_classes
    else:
        gallery, gallery_classes = unit(generator, 9, 3), generator.integers(0, 5, 9)
        gallery_classes[0] = query_classes[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.evaluation, "BLOCK", block)
        arguments = () if leave_self_out else (gallery, gallery_classes)
        result = retrieval(queries, query_classes, *arguments)
    expected = reference(queries, query_classes, gallery, gallery_classes, leave_self_out)
    assert (result.recall_at_1, result.map_at_r, result.queries) == pytest.approx(expected)


def test_no_query_with_a_match_gives_nan_over_no_queries() -> None:
    vectors = np.eye(2, dtype=np.float32)
    result = retrieval(vectors, np.array([0, 1]))
    assert result.queries == 0
    assert np.isnan(result.recall_at_1)


def test_nearest_class_mean_by_hand() -> None:
    gallery = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    queries = np.array([[0.8, 0.6], [-0.9, 0.1], [0.1, -1]], dtype=np.float32)
    # means: class 7 at 45 degrees, class 9 at 180 degrees; class 3 is in no gallery
    assert nearest_class_mean(queries, np.array([7, 9, 3]), gallery, np.array([7, 7, 9])) == pytest.approx(2 / 3)
