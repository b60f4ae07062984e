from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import training.measures.retrieval
from training.measures.breakdown import by_size, confusions, per_class
from training.measures.retrieval import blocks, classes_by_mean_of_others, nearest_class_mean, rank, retrieval


def unit(generator: np.random.Generator, n: int, d: int) -> np.ndarray:
    vectors = generator.normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reference(queries, query_classes, gallery, gallery_classes, leave_self_out):
    """Recall@1, 5, 10, MAP@R and R-precision from their definitions, one query at a time."""
    recalls, precisions, r_precisions = [], [], []
    for i, (query, wanted) in enumerate(zip(queries, query_classes, strict=True)):
        others = [j for j in range(len(gallery)) if not (leave_self_out and i == j)]
        ranked = sorted(others, key=lambda j: -float(query.astype(np.float64) @ gallery[j].astype(np.float64)))
        right = [gallery_classes[j] == wanted for j in ranked]
        if not any(right):
            continue
        recalls.append([any(right[:k]) for k in (1, 5, 10)])
        r = sum(right)
        r_precisions.append(sum(right[:r]) / r)
        precisions.append(sum(np.mean(right[: k + 1]) for k in range(r) if right[k]) / r)
    return *np.mean(recalls, axis=0), np.mean(precisions), np.mean(r_precisions), len(recalls)


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
        patch.setattr(training.measures.retrieval, "BLOCK", block)
        arguments = () if leave_self_out else (gallery, gallery_classes)
        result = retrieval(queries, query_classes, *arguments)
    expected = reference(queries, query_classes, gallery, gallery_classes, leave_self_out)
    assert astuple(result) == pytest.approx(expected)


def test_no_query_with_a_match_gives_nan_over_no_queries() -> None:
    vectors = np.eye(2, dtype=np.float32)
    result = retrieval(vectors, np.array([0, 1]))
    assert result.queries == 0
    assert np.isnan(result.recall_at_1)


@pytest.mark.filterwarnings("error")
def test_a_class_whose_vectors_are_nothing_spoils_no_other() -> None:
    gallery = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    assert nearest_class_mean(gallery[:2], np.array([0, 1]), gallery, np.array([0, 1, 2])) == 1


def test_nearest_class_mean_by_hand() -> None:
    gallery = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    queries = np.array([[0.8, 0.6], [-0.9, 0.1], [0.1, -1]], dtype=np.float32)
    # means: class 7 at 45 degrees, class 9 at 180 degrees; class 3 is in no gallery
    assert nearest_class_mean(queries, np.array([7, 9, 3]), gallery, np.array([7, 7, 9])) == pytest.approx(2 / 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_the_mean_of_the_others_leaves_the_query_out(seed: int, block: int) -> None:
    generator = np.random.default_rng(seed)
    vectors, classes = unit(generator, 14, 3), generator.integers(0, 5, 14) * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.measures.retrieval, "BLOCK", block)
        found = classes_by_mean_of_others(vectors, classes)
    for at, vector in enumerate(vectors.astype(np.float64)):
        centres = {}
        for code in np.unique(classes):
            members = [i for i in np.flatnonzero(classes == code) if i != at]
            if members:
                total = vectors[members].astype(np.float64).sum(axis=0)
                centres[code] = total / np.linalg.norm(total)
        assert vector @ centres[found[at]] == pytest.approx(
            max(vector @ centre for centre in centres.values()), abs=1e-5
        )


def test_the_nearest_hit_is_never_the_query_itself() -> None:
    vectors = unit(np.random.default_rng(0), 20, 4)
    classes = np.arange(20) // 2
    ranking = rank(vectors, classes)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    np.testing.assert_array_equal(ranking.nearest, scores.argmax(axis=1))
    np.testing.assert_array_equal(ranking.query, np.arange(20))


def test_blocks_stay_within_the_scores_allowed_and_cover_everything() -> None:
    for count, width in ((10, 3), (1000, 10**6), (1030, 40), (5, 10**9), (0, 3)):
        found = list(blocks(count, width))
        assert [i for part in found for i in range(part.start, part.stop)] == list(range(count))
        for part in found:
            rows = part.stop - part.start
            assert rows == 1 or rows * width <= training.measures.retrieval.BLOCK_SCORES
            assert rows <= training.measures.retrieval.BLOCK


def test_confusions_by_hand() -> None:
    truth, answer = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 2, 1, 0, 2])
    texts, closest = [f"q{i}" for i in range(6)], [f"g{i}" for i in range(6)]
    found = confusions(truth, answer, texts, closest, ["a", "b", "c"])
    assert [(entry["label"], entry["taken_for"], entry["queries"], entry["of"]) for entry in found] == [
        ("a", "b", 2, 3),
        ("b", "a", 1, 2),
        ("a", "c", 1, 3),
    ]
    assert found[0]["examples"] == [{"text": "q0", "closest": "g0"}, {"text": "q1", "closest": "g1"}]
    assert confusions(truth, truth, texts, closest, ["a", "b", "c"]) == []


def test_classes_and_slices_by_hand() -> None:
    truth, right = np.array([0, 0, 1, 3]), np.array([True, False, True, False])
    precision, rows = np.array([1.0, 0.5, 0.25, 0.0]), np.array([4, 12, 7, 5])
    table = per_class(truth, right, precision, rows, ["a", "b", "c", "d"])
    assert [(row["label"], row["rows"], row["queries"], row["recall_at_1"], row["map_at_r"]) for row in table] == [
        ("d", 5, 1, 0.0, 0.0),
        ("a", 4, 2, 0.5, 0.75),
        ("b", 12, 1, 1.0, 0.25),
    ]
    slices = by_size(truth, right, precision, rows)
    assert [(part["rows"], part["classes"], part["queries"], part["recall_at_1"]) for part in slices] == [
        ("1–4", 1, 2, 0.5),
        ("5–9", 1, 1, 0.0),
        ("10–19", 1, 1, 1.0),
    ]
