"""A first look at 8 bits: what it calls proven is what a product in float64 finds, and nothing else is answered so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.collection import Collection
from index.engines import eight_bits, faiss_flat
from index.engines.eight_bits import EightBits
from index.engines.engine import Selection
from index.engines.faiss_flat import FaissFlat
from index.engines.native_faiss import faiss
from tests.index.conftest import World

USABLE = eight_bits.usable()
needs_exact_products = pytest.mark.skipif(
    not USABLE, reason="ONNX Runtime loses digits in products of 8-bit integers on this processor"
)
RNG = np.random.default_rng(7)
Array = NDArray[Any]


def unit(vectors: Array) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


CENTRES = RNG.standard_normal((80, 96))
GALLERY = unit(CENTRES[RNG.integers(0, 80, 60_000)] + 0.7 * RNG.standard_normal((60_000, 96)))
QUERIES = unit(CENTRES[RNG.integers(0, 80, 150)] + 0.7 * RNG.standard_normal((150, 96)))


@pytest.fixture(scope="module", params=[127, 63])
def prepared(request: pytest.FixtureRequest) -> EightBits:
    """Queries rounded to as many steps as processors with instructions for it multiply, and as those without."""
    if eight_bits.finest() < request.param:
        pytest.skip("ONNX Runtime loses digits in products of 8-bit integers on this processor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eight_bits, "finest", lambda: request.param)
        return EightBits(GALLERY)


@pytest.fixture
def afresh() -> Iterator[None]:
    """What was found usable is forgotten before and after."""
    eight_bits.finest.cache_clear()
    yield
    eight_bits.finest.cache_clear()


def truth(queries: Array, gallery: Array, k: int) -> Array:
    return -np.sort(-(queries.astype(np.float64) @ gallery.T.astype(np.float64)), axis=1)[:, :k]


def check(quick: EightBits, gallery: Array, queries: Array, k: int) -> NDArray[np.bool_]:
    scores, positions, proven = quick.top(queries, k)
    told = (queries.astype(np.float64) @ gallery.T.astype(np.float64))[np.arange(len(queries))[:, None], positions]
    np.testing.assert_allclose(scores[proven], told[proven], atol=1e-6)
    np.testing.assert_allclose(scores[proven], truth(queries, gallery, k)[proven], atol=1e-6)
    assert all(len(set(row)) == k for row in positions[proven].tolist())
    return proven


@given(n=st.integers(0, 150), k=st.integers(1, 300))
@settings(max_examples=25)
def test_what_is_proven_is_what_float64_finds(prepared: EightBits, n: int, k: int) -> None:
    check(prepared, GALLERY, QUERIES[:n], k)


@pytest.mark.parametrize("k", [1, 10, 30, 100, 300])
def test_nearly_all_is_proven(prepared: EightBits, k: int) -> None:
    assert check(prepared, GALLERY, QUERIES, k).mean() >= 0.9


@needs_exact_products
@given(st.data())
@settings(max_examples=40)
def test_what_is_proven_is_right_whatever_the_vectors(data: st.DataObject) -> None:
    """Copies, near copies, spikes that make rounding coarse, queries of any length."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size, d = data.draw(st.integers(20, 700)), data.draw(st.integers(2, 40))
    tail = data.draw(st.sampled_from([1.0, 3.0, 9.0]))
    vectors = random.standard_normal((size, d)) * np.exp(random.standard_normal((size, d)) * (tail - 1) / 4)
    copies = random.integers(0, size, size // 2)
    vectors[: size // 2] = vectors[copies] + data.draw(st.sampled_from([0.0, 1e-6, 1e-3])) * random.random(
        (size // 2, d)
    )
    gallery = unit(vectors)
    near = gallery[random.integers(0, size, 9)] + 0.1 * random.standard_normal((9, d))
    queries = np.asarray(near * data.draw(st.sampled_from([1.0, 1e-3, 50.0])), np.float32)
    quick = EightBits(gallery)
    scores, _, proven = quick.top(queries, data.draw(st.integers(1, size)))
    expected = truth(queries, gallery, scores.shape[1])
    scale = np.linalg.norm(queries, axis=1)[:, None]
    np.testing.assert_allclose((scores / scale)[proven], (expected / scale)[proven], atol=2e-6)


@needs_exact_products
def test_several_blocks_are_one_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bits, "_BLOCK", 1000)
    gallery = GALLERY[:7001]  # the last block holds one vector alone, fewer than are asked for
    quick = EightBits(gallery)
    assert check(quick, gallery, QUERIES, 20).mean() > 0.9
    last = quick.top(gallery[-1:], 1)
    assert last[1].tolist() == [[7000]]
    assert last[2].all()


def test_an_unlike_query_does_not_coarsen_the_others(prepared: EightBits) -> None:
    """One number that is all of a query, or none that stands out: either is rounded in steps of its own."""
    spike, even = np.eye(1, 96, dtype=np.float32), unit(RNG.choice([-1.0, 1.0], (1, 96)))
    scores, _, proven = prepared.top(np.concatenate([even, QUERIES[:3], spike]), 10)
    assert proven[1:4].all()
    np.testing.assert_allclose(scores[1:4], truth(QUERIES[:3], GALLERY, 10), atol=1e-6)
    assert (
        prepared.top(QUERIES[:60], 10)[2].sum() == prepared.top(np.concatenate([even, QUERIES[:60]]), 10)[2][1:].sum()
    )


@pytest.mark.parametrize("length", [0.0, 1e-38, 1e-25, 1e25, 1e38])
def test_queries_of_any_length(prepared: EightBits, length: float) -> None:
    queries = np.concatenate([(QUERIES[:5] * length), QUERIES[:5]]).astype(np.float32)
    scores, _, proven = prepared.top(queries, 5)
    assert proven[5:].all()
    assert proven[:5].all() == (1e-30 < length < 1e30)
    if proven[:5].all():
        np.testing.assert_allclose(scores[:5] / length, scores[5:], atol=1e-6)


@needs_exact_products
@pytest.mark.parametrize("length", [1.001, 1.5, 30.0])
def test_one_vector_that_is_too_long_proves_nothing_wrong(length: float) -> None:
    gallery = GALLERY[:3000].copy()
    gallery[7] *= length
    quick = EightBits(gallery)
    scores, _, proven = quick.top(QUERIES, 3)
    assert proven.any()
    np.testing.assert_allclose(scores[proven], truth(QUERIES, gallery, 3)[proven], atol=1e-5)


def engine(gallery: NDArray[np.float32]) -> FaissFlat:
    found = FaissFlat.build(gallery, np.arange(10, len(gallery) + 10))
    found.prepare()
    assert found._eight_bits is not None
    return found


def answers(found: FaissFlat, queries: NDArray[np.float32], k: int, passing: NDArray[np.bool_] | None = None) -> None:
    """The engine's answers are float64's, proven or not."""
    gallery = found._all()
    cosines = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    selection = None
    if passing is not None:
        selection = Selection(excluded=np.flatnonzero(~passing) + 10)
        cosines[:, ~passing] = -np.inf
    scores, rows = found.search(queries, k, selection)
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, rows - 10, 1), atol=1e-6)


@needs_exact_products
@pytest.mark.parametrize("n", [1, 2, 12, 64, 130])
def test_a_prepared_engine_finds_the_same(n: int) -> None:
    answers(engine(GALLERY), QUERIES[:n], 10)


@needs_exact_products
def test_what_is_not_proven_is_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand copies lie nearest: the bounds of those left out are as high as the k-th best cosine."""
    gallery = GALLERY.copy()
    gallery[:1000] = unit(QUERIES[:1] + 1e-4 * RNG.standard_normal((1000, 96)))
    found = engine(gallery)
    assert found._eight_bits is not None
    assert found._eight_bits.top(QUERIES[:4], 10)[2].tolist() == [False, True, True, True]
    answers(found, QUERIES[:4], 10)


@needs_exact_products
@pytest.mark.parametrize("share", [0.0005, 0.05, 0.6])
def test_what_is_left_out_by_a_selection_is_not_found(share: float) -> None:
    """Deleted items above all: with few of them the 8 bits are looked at still."""
    answers(engine(GALLERY), QUERIES[:20], 10, RNG.random(len(GALLERY)) >= share)


@needs_exact_products
def test_all_nearest_are_deleted() -> None:
    found = engine(GALLERY)
    passing = np.ones(len(GALLERY), np.bool_)
    passing[np.argsort(-(GALLERY @ QUERIES[0]))[:500]] = False
    answers(found, QUERIES[:3], 10, passing)


@needs_exact_products
def test_more_than_a_part_of_the_gallery_is_asked_for() -> None:
    answers(engine(GALLERY), QUERIES[:2], len(GALLERY) // 3)


@needs_exact_products
def test_memory_counts_what_is_held() -> None:
    before = FaissFlat.build(GALLERY, np.arange(len(GALLERY))).describe()["memory_bytes"]
    assert engine(GALLERY).describe()["memory_bytes"] - before == GALLERY.size + 8 * len(GALLERY)


def test_a_small_gallery_is_not_prepared() -> None:
    found = FaissFlat.build(GALLERY[:2000], np.arange(2000))
    found.prepare()
    assert found._eight_bits is None


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
@pytest.mark.usefixtures("afresh")
def test_without_onnx_nothing_is_prepared(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bits, "find_spec", lambda name: None if name == missing else object())
    assert not eight_bits.usable()
    found = FaissFlat.build(GALLERY, np.arange(len(GALLERY)))
    found.prepare()
    assert found._eight_bits is None


@pytest.mark.usefixtures("afresh")
def test_an_onnx_runtime_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(eight_bits, "inference_session", failing)
    assert not eight_bits.usable()
    assert "no such operator" in caplog.text


@needs_exact_products
def test_what_cannot_be_prepared_is_searched_as_before(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def failing(_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(faiss_flat, "EightBits", failing)
    found = FaissFlat.build(GALLERY, np.arange(10, len(GALLERY) + 10))
    found.prepare()
    assert "no room" in caplog.text
    answers(found, QUERIES[:3], 10)


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize(("bits", "finest"), [(17, 127), (16, 63), (15, 0)])
def test_a_processor_that_cuts_sums_off_gets_smaller_numbers(
    bits: int, finest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What processors without VNNI do: pairs of products are added in 16 bits."""
    onnx = pytest.importorskip("onnx")

    class Cutting:
        def __init__(self, content: bytes, constants: dict[str, Array]) -> None:
            self.items = constants["vectors-0"].astype(np.int64)
            named = {one.name: one for one in onnx.load_from_string(content).graph.initializer}
            self.middle = int(onnx.numpy_helper.to_array(named["middle"]))

        def run(self, _: None, fed: dict[str, Any]) -> tuple[Array, Array]:
            asked = fed["queries"].astype(np.int64)
            products = asked[:, :, None] * self.items[None]
            even = products if products.shape[1] % 2 == 0 else np.pad(products, ((0, 0), (0, 1), (0, 0)))
            most = 2 ** (bits - 1)
            pairs = np.clip(even[:, ::2] + even[:, 1::2], -most, most - 1).sum(axis=1)
            found = pairs - self.middle * self.items.sum(axis=0)
            return found, np.broadcast_to(np.arange(found.shape[1]), found.shape)

    monkeypatch.setattr(eight_bits, "inference_session", Cutting)
    assert eight_bits.finest() == finest
    assert eight_bits.usable() == (finest > 0)


@pytest.mark.usefixtures("afresh")
def test_a_runtime_that_does_not_pack_the_vectors_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read memory that has been given back."""

    class Reading:
        def __init__(self, content: bytes, constants: dict[str, Array]) -> None:
            self.items = constants["vectors-0"]

        def run(self, _: None, fed: dict[str, Any]) -> tuple[Array, Array]:
            found = (fed["queries"].astype(np.int64) - 128) @ self.items.astype(np.int64)
            return found, np.broadcast_to(np.arange(found.shape[1]), found.shape)

    monkeypatch.setattr(eight_bits, "inference_session", Reading)
    assert not eight_bits.usable()


@needs_exact_products
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of newer Pythons, where threads run
def test_after_a_fork_everything_is_compared_in_full() -> None:
    """ONNX Runtime's threads stayed with the parent: a search there would wait for them for ever."""
    found = engine(GALLERY)
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            faiss.omp_set_num_threads(1)
            answers(found, QUERIES[:3], 10)
        except BaseException:
            os._exit(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found._eight_bits is not None
    assert found._eight_bits.alive


@needs_exact_products
def test_a_prepared_collection_stays_prepared(copied: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its own compaction and, in a reader, after another process's; the answers are the same."""
    monkeypatch.setattr(faiss_flat, "SMALL", 0)
    monkeypatch.setattr(faiss_flat, "_SHARE", 1)
    asked: list[int] = []
    real = EightBits.top

    def counted(quick: EightBits, queries: NDArray[np.float32], *more: Any) -> Any:
        asked.append(len(queries))
        return real(quick, queries, *more)

    monkeypatch.setattr(EightBits, "top", counted)
    with closing(Collection.open(copied)) as reader, closing(Collection.open(copied, writable=True)) as writer:
        texts = [str(row.text) for row in world.rows(world.test)]
        before = scores(reader, texts)
        for collection in (reader, writer):
            assert held(collection) is None
            collection.prepare()
            assert held(collection) is not None
        assert not asked
        np.testing.assert_allclose(scores(reader, texts), before, atol=1e-6)
        assert asked == [len(texts)]
        prepared = held(writer)
        writer.snapshot()
        reader.refresh()
        for collection in (reader, writer):
            assert held(collection) not in (None, prepared)


def scores(collection: Collection, texts: list[str]) -> list[list[float]]:
    return [[hit.score for hit in answer.hits] for answer in collection.search(texts)]


def held(collection: Collection) -> EightBits | None:
    assert isinstance(collection.engine, FaissFlat)
    return collection.engine._eight_bits
