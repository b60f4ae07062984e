"""Label profiles against loops that follow their definition."""

from __future__ import annotations

import numpy as np
import pytest

from index.errors import CollectionError
from index.items import profile
from index.items.profile import LabelProfile
from tests.index.helpers import unit


def test_centroids_and_cohesion_follow_their_definition() -> None:
    vectors, codes = unit(90, 6), np.random.default_rng(1).integers(0, 7, 90)
    codes[codes == 6] = 100 + np.flatnonzero(codes == 6)  # unlabelled items
    codes[codes == 5] = 4
    codes[0] = 5  # a label of one item
    found = LabelProfile.of(vectors, codes, 6)
    means = []
    for code in range(6):
        own = vectors[codes == code].astype(np.float64)
        np.testing.assert_allclose(found.centroids[code], own.sum(0) / np.linalg.norm(own.sum(0)), atol=1e-6)
        nearest = [max(a @ b for j, b in enumerate(own) if i != j) for i, a in enumerate(own)] if len(own) > 1 else []
        means.append((len(nearest), float(np.mean(nearest)) if nearest else 0.0))
    neutral = np.mean([mean for count, mean in means if count])
    expected = [(count * mean + 5 * neutral) / (count + 5) for count, mean in means]
    np.testing.assert_allclose(found.cohesion, expected, atol=1e-6)
    assert found.cohesion[5] == pytest.approx(neutral), "one item says nothing of its label's width"
    queries = unit(3, 6, seed=9)
    features = found.features(queries, np.array([0, 2]), np.array([4, 150]), np.array([0.1, 0.7]))
    assert features[0] == pytest.approx([queries[0] @ found.centroids[4], found.cohesion[4]])
    assert features[1] == pytest.approx([0.7, neutral]), "an unlabelled item is its own centroid"


def test_a_profile_survives_storage_and_refuses_other_labels() -> None:
    made = LabelProfile.of(unit(20, 4), np.arange(20) % 3, 3)
    again = LabelProfile.load(made.dump(), 3)
    np.testing.assert_array_equal(again.centroids, made.centroids)
    np.testing.assert_array_equal(again.cohesion, made.cohesion)
    assert again.neutral == made.neutral
    for content, count in ((made.dump(), 4), (b"", 3), (made.dump()[:-9], 3)):
        with pytest.raises(CollectionError, match="label profile"):
            LabelProfile.load(content, count)


def test_the_items_that_speak_for_a_large_label_depend_on_nothing_but_its_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile, "_SAMPLE", 30)
    vectors, codes = unit(400, 8), np.arange(400) % 4
    found = LabelProfile.of(vectors, codes, 4)
    shuffled = np.random.default_rng(2).permutation(400)
    np.testing.assert_allclose(
        LabelProfile.of(vectors[shuffled], codes[shuffled], 4).cohesion, found.cohesion, atol=1e-6
    )
    alone = LabelProfile.of(vectors[codes == 2], np.zeros(100, np.int64), 1, neutral=found.neutral)
    assert alone.cohesion[0] == found.cohesion[2]
    before, after = ({row.tobytes() for row in profile._some(part)} for part in (vectors[:99], vectors[:100]))
    assert len(before) == len(after) == 30
    assert len(after - before) <= 1


def test_galleries_without_labels_or_items() -> None:
    lonely = LabelProfile.of(unit(4, 3), np.arange(4), 0)
    assert lonely.features(unit(1, 3), np.array([0]), np.array([2]), np.array([0.3])).tolist() == [[0.3, 0.0]]
    assert LabelProfile.of(np.empty((0, 3), np.float32), np.empty(0, np.int64), 0).centroids.shape == (0, 3)
