"""Certificates against brute force over whole galleries, on random and on real scores."""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import simplex

DATA = Path(__file__).parents[3] / "shared" / "data"
SEEDS = range(4)


def galleries(seed: int, count: int = 600) -> list[tuple[np.ndarray, int, float, float]]:
    """Descending scores of small galleries (with ties), k, alpha and temperature."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        n = int(rng.integers(2, 60))
        x = rng.normal(size=n) * rng.choice([0.1, 0.5, 2.0])
        x = np.round(x, int(rng.integers(0, 3))) if rng.random() < 0.5 else x
        made.append(
            (
                np.sort(x)[::-1],
                int(rng.integers(1, n + 1)),
                rng.choice([1.2, 1.5, 1.8, 2.0, 2.5]),
                rng.choice([0.2, 1.0]),
            )
        )
    return made


@pytest.mark.parametrize("seed", SEEDS)
def test_a_certified_answer_is_the_answer_over_the_whole_gallery(seed: int) -> None:
    certified = 0
    for x, k, alpha, temperature in galleries(seed):
        full = simplex.entmax(x, alpha, temperature=temperature)
        c = simplex.certify(x[:k], len(x), alpha=alpha, temperature=temperature)
        assert (c.lower <= full[:k] + 1e-12).all()
        assert (full[:k] <= c.upper + 1e-12).all()
        assert full[k:].sum() <= c.unseen_mass + 1e-12
        if c.certified:
            certified += 1
            np.testing.assert_allclose(c.probabilities, full[:k], rtol=0, atol=1e-11)
            assert full[k:].max(initial=0) < 1e-11
            assert c.unseen_mass == 0
    assert certified > 100


@pytest.mark.parametrize("seed", SEEDS)
def test_the_condition_is_tight(seed: int) -> None:
    """Where it fails by more than rounding, one unseen item tied with the k-th takes mass, and so does the bound."""
    refused = 0
    for x, k, alpha, temperature in galleries(seed):
        c = simplex.certify(x[:k], k + 1, alpha=alpha, temperature=temperature)
        completed = simplex.entmax(np.append(x[:k], x[k - 1]), alpha, temperature=temperature)
        if c.margin < -1e-9:
            refused += 1
            assert not c.certified
            assert completed[k] > 0
            assert np.abs(completed[:k] - c.probabilities).max() > 0
            np.testing.assert_allclose(c.lower, completed[:k], atol=1e-6)  # attained by this very gallery
            assert c.unseen_mass == pytest.approx(completed[k], abs=1e-6)
        elif c.certified:
            np.testing.assert_allclose(completed[:k], c.probabilities, atol=1e-11)
    assert refused > 100


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_in_the_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    certified = 0
    for x, k, alpha, temperature in galleries(seed):
        noise = float(rng.choice([1e-3, 0.02, 0.1]))
        c = simplex.certify(x[:k], len(x), alpha=alpha, temperature=temperature, noise=noise)
        certified += int(c.certified)
        errors = rng.uniform(-noise, noise, size=(4, len(x)))
        errors[3] = np.where(
            np.arange(len(x)) < k, -noise, noise
        )  # the worst: the seen overrated, the unseen underrated
        true = x + temperature * errors
        full = simplex.entmax(true, alpha, temperature=temperature)
        if c.certified:
            assert full[:, k:].max(initial=0) == 0
        assert (c.lower <= full[:, :k] + 1e-12).all()
        assert (full[:, :k] <= c.upper + 1e-12).all()
        assert (full[:, k:].sum(-1) <= c.unseen_mass + 1e-12).all()
    assert certified > 50


def test_softmax_never_certifies_but_is_bounded() -> None:
    rng = np.random.default_rng(0)
    x = -np.sort(-rng.uniform(-1, 1, size=(200, 50)))
    full = simplex.softmax(x, temperature=0.1)
    c = simplex.certify(x[:, :10], 50, alpha=1.0, temperature=0.1, lowest=-1.0)
    assert not c.certified.any()
    assert (c.lower <= full[:, :10]).all()
    assert (full[:, :10] <= c.upper).all()
    assert (full[:, 10:].sum(-1) <= c.unseen_mass).all()
    assert simplex.certify(x, 50, alpha=1.0).certified.all()


def test_the_support_lies_within_its_radius() -> None:
    for x, _, alpha, temperature in galleries(9):
        p = simplex.entmax(x, alpha, temperature=temperature)
        assert (x[p > 0] > x.max() - simplex.support_radius(alpha, temperature) - 1e-12).all()
    assert simplex.support_radius(1.0, 0.1) == np.inf


def test_a_batch_is_its_rows_and_tensors_are_taken() -> None:
    x = -np.sort(-np.random.default_rng(1).normal(size=(4, 5, 8)))
    whole = simplex.certify(torch.tensor(x), 100, alpha=1.5, temperature=0.3)
    for i, j in np.ndindex(4, 5):
        row = simplex.certify(x[i, j], 100, alpha=1.5, temperature=0.3)
        for name in ("probabilities", "certified", "lower", "upper", "unseen_mass", "margin"):
            np.testing.assert_allclose(getattr(whole, name)[i, j], getattr(row, name), rtol=0, atol=1e-14)


def test_bad_arguments_are_named() -> None:
    x = np.array([1.0, 0.5])
    for text, call in (
        ("n_total must be at least", lambda: simplex.certify(x, 1)),
        ("alpha must be at least 1", lambda: simplex.certify(x, 9, alpha=0.5)),
        ("temperature must be positive", lambda: simplex.certify(x, 9, temperature=0)),
        ("noise must be >= 0", lambda: simplex.certify(x, 9, noise=-1.0)),
        ("scores must hold a finite score", lambda: simplex.certify(np.array([np.nan, 1]), 9)),
        ("scores must hold at least one score", lambda: simplex.certify(x[:0], 9)),
    ):
        with pytest.raises(ValueError, match=text):
            call()


@pytest.fixture(scope="module")
def sentences() -> np.ndarray:
    """Unit vectors of the banking77 messages, test before train: means of the token vectors packaged with wordllama."""
    files = [DATA / "banking77" / name for name in ("test.csv", "train.csv")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"banking77 is not at {DATA}: certificates were not checked on text embeddings")
    package = Path(str(find_spec("wordllama").origin)).parent  # type: ignore[union-attr]
    table = load_file(package / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].astype(np.float64)
    tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    texts = [row["text"] for file in files for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))]
    tokens = [code.ids for code in tokenizer.encode_batch(texts, add_special_tokens=False)]
    vectors = np.stack([table[ids].mean(0) for ids in tokens])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_on_real_sentences(sentences: np.ndarray, alpha: float, temperature: float) -> None:
    """500 messages against all the others: what the head of the ranking proves holds over the whole gallery."""
    cosines = -np.sort(-(sentences[:500] @ sentences[500:].T), axis=1)
    n = cosines.shape[1]
    full = simplex.entmax(cosines, alpha, temperature=temperature)
    shares = []
    for k in (10, 100):
        c = simplex.certify(cosines[:, :k], n, alpha=alpha, temperature=temperature)
        done = c.certified
        np.testing.assert_allclose(c.probabilities[done], full[done, :k], rtol=0, atol=1e-12)
        assert not full[done, k:].any()
        assert not c.unseen_mass[done].any()
        # Tight: where it does not certify, one more message tied with the k-th would take mass.
        tied = np.concatenate([cosines[~done, :k], cosines[~done, k - 1 : k]], axis=1)
        if len(tied):
            assert (simplex.entmax(tied, alpha, temperature=temperature)[:, k] > 0).all()
        assert (c.lower <= full[:, :k] + 1e-12).all()
        assert (full[:, :k] <= c.upper + 1e-12).all()
        assert (full[:, k:].sum(-1) <= c.unseen_mass + 1e-12).all()
        shares.append(float(done.mean()))
    assert shares[0] <= shares[1]
    assert shares[1] > 0.3


def test_on_real_faces() -> None:
    """Cosines of real faces (pixels, centred): the certified answers equal those over the whole gallery."""
    images = sorted((DATA / "orl_faces" / "images").rglob("*.*"))
    if not images:
        pytest.skip(f"the ORL faces are not at {DATA}")
    from PIL import Image

    vectors = np.stack(
        [np.asarray(Image.open(path).convert("L").resize((46, 56)), dtype=np.float64).ravel() for path in images]
    )
    vectors -= vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = -np.sort(-(vectors @ vectors.T), axis=1)[:, 1:]
    shares = []
    for alpha, temperature, k in ((2.0, 0.05, 10), (2.0, 0.2, 50), (1.5, 0.05, 50), (1.5, 0.1, 2)):
        full = simplex.entmax(cosines, alpha, temperature=temperature)
        c = simplex.certify(cosines[:, :k], cosines.shape[1], alpha=alpha, temperature=temperature)
        done = c.certified
        np.testing.assert_allclose(c.probabilities[done], full[done, :k], rtol=0, atol=1e-12)
        assert (full[done, k:] == 0).all()
        assert (full[:, k:].sum(-1) <= c.unseen_mass + 1e-12).all()
        shares.append(done.mean())
    assert max(shares) > 0.9
    assert min(shares) < 0.9
