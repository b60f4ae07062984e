"""Every objective of the registry trains, saves, loads and continues; formulas agree with float64 references."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import get_args, get_overloads, get_type_hints

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sentence_transformers import SentenceTransformer

from index.errors import DataError, SettingsError
from tests.training.conftest import TOPICS, Write, sentences
from training.cli import train
from training.config import Loss
from training.measures.retrieval import retrieval
from training.objectives import OBJECTIVES, Objective, make_objective
from training.objectives.base import NORM
from training.objectives.contrastive import reshape
from training.objectives.maps import FineTuning, taylor_order
from training.parts.heads import HEAD, class_means, load_head, save_head

CLASSES = 5


@pytest.fixture
def encoder(tiny_encoder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_encoder), device="cpu")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors (12, 16), classes, and lengths before normalisation."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(12, 16, generator=generator), dim=1)
    labels = torch.randint(CLASSES, (12,), generator=generator)
    return vectors, labels, 1 + 5 * torch.rand(12, generator=generator)


def cosines_of(loss: Objective, vectors: torch.Tensor) -> np.ndarray:
    weights, x = loss.head.weight.detach().double().numpy(), vectors.double().numpy()
    return (x / np.linalg.norm(x, axis=1)[:, None]) @ (weights / np.linalg.norm(weights, axis=1)[:, None]).T


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    rows = [np.log(np.sum(np.exp(row - row[t]))) for row, t in zip(logits, labels, strict=True)]
    return float(np.mean(rows))


def with_target(cosines: np.ndarray, labels: np.ndarray, change) -> np.ndarray:
    result = cosines.copy()
    for i, t in enumerate(labels):
        result[i, t] = change(cosines[i, t], i)
    return result


def test_the_flag_offers_what_the_registry_has() -> None:
    assert list(get_args(Loss)) == list(OBJECTIVES)
    assert all(entry.summary for entry in OBJECTIVES.values())


def test_a_type_checker_knows_which_objectives_have_class_weights() -> None:
    with_weights, _ = (get_type_hints(signature) for signature in get_overloads(make_objective))
    assert get_args(with_weights["name"]) == tuple(n for n, entry in OBJECTIVES.items() if entry.shape == "labelled")
    assert with_weights["return"] is Objective


# --- formulas ---------------------------------------------------------------------------------------------------------

FIXED = {
    "am-softmax": lambda c: c - 0.35,
    "arcface": lambda c: math.cos(math.acos(c) + 0.5) if math.acos(c) + 0.5 < math.pi else c - 0.5 * math.sin(0.5),
    "combined": lambda c: math.cos(math.acos(c) + 0.3) - 0.2,
    "normalised-softmax": lambda c: c,
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed_margins_agree_with_their_formula_in_float64(name: str, encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    loss = make_objective(name, encoder, CLASSES)
    margined = with_target(cosines_of(loss, vectors), labels.numpy(), lambda c, i: FIXED[name](c))
    expected = cross_entropy(30 * margined, labels.numpy())
    assert loss.loss_of(vectors, labels).item() == pytest.approx(expected, rel=1e-5)


def test_sphereface_is_annealed_as_in_the_paper(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    loss = make_objective("sphereface", encoder, CLASSES)

    def psi(c: float) -> float:
        k = math.floor(4 * math.acos(c) / math.pi)
        return (-1) ** k * math.cos(4 * math.acos(c)) - 2 * k

    for step in (0, 1, 2000):
        loss.steps.fill_(step)
        strength = max(5.0, 1500 / (1 + 0.1 * step))
        cosines = cosines_of(loss, vectors)
        hard = with_target(cosines, labels.numpy(), lambda c, i: psi(c))
        expected = cross_entropy(30 * (hard + strength * cosines) / (1 + strength), labels.numpy())
        assert loss.loss_of(vectors, labels).item() == pytest.approx(expected, rel=1e-4)
        assert int(loss.steps) == step + 1


def test_a_class_stands_at_its_best_sub_center(encoder: SentenceTransformer, batch) -> None:
    vectors, _, _ = batch
    loss = make_objective("sub-center", encoder, CLASSES, centers=3)
    every = cosines_of(loss, vectors).reshape(len(vectors), CLASSES, 3)
    np.testing.assert_allclose(loss.cosines(vectors).detach(), every.max(axis=2), atol=1e-6)
    torch.manual_seed(0)  # the centers of a class are told apart by chance
    loss.imprint(torch.eye(16)[:CLASSES])
    own = loss.head.weight.view(CLASSES, 3, 16)
    assert not torch.equal(own[:, 0], own[:, 1])
    assert (torch.nn.functional.normalize(own, dim=2)[range(CLASSES), :, range(CLASSES)] > 0.9).all()


def test_adaface_agrees_with_the_paper(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, norms = batch
    loss = make_objective("adaface", encoder, CLASSES)
    mean = std = 0.0
    for step, lengths in enumerate((norms, norms * 2)):  # the second batch meets running statistics
        a = lengths.double().numpy()
        share = 1.0 if step == 0 else 0.01
        mean, std = share * a.mean() + (1 - share) * mean, share * a.std(ddof=1) + (1 - share) * std
        k = np.clip((a - mean) / (std + 1e-3) * 0.333, -1, 1)
        g_angle, g_add = -0.4 * k, 0.4 * k + 0.4
        logits = 30 * with_target(
            cosines_of(loss, vectors),
            labels.numpy(),
            lambda c, i, g_angle=g_angle, g_add=g_add: math.cos(math.acos(c) + g_angle[i]) - g_add[i],
        )
        value = loss.loss_of(vectors, labels, lengths).item()
        assert value == pytest.approx(cross_entropy(logits, labels.numpy()), rel=1e-4)


def test_magface_agrees_with_the_paper(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, norms = batch
    loss = make_objective("magface", encoder, CLASSES)
    loss.unit.fill_(1.0)  # the paper's own lengths
    a = np.clip(norms.double().numpy() * 30, 10, 110)
    m = (0.8 - 0.45) / (110 - 10) * (a - 10) + 0.45

    def bend(c: float, i: int) -> float:
        return math.cos(math.acos(c) + m[i]) if math.acos(c) + m[i] < math.pi else c - m[i] * math.sin(m[i])

    logits = 30 * with_target(cosines_of(loss, vectors), labels.numpy(), bend)
    expected = cross_entropy(logits, labels.numpy()) + 35 * np.mean(a / 110**2 + 1 / a)
    assert loss.loss_of(vectors, labels, norms * 30).item() == pytest.approx(expected, rel=1e-4)


def test_magface_counts_lengths_from_the_first_batch(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, norms = batch
    loss = make_objective("magface", encoder, CLASSES)
    loss.loss_of(vectors, labels, norms)
    assert float(loss.unit) == pytest.approx(float(norms.mean()) / 60)


def test_curricularface_agrees_with_the_paper(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    loss = make_objective("curricularface", encoder, CLASSES)
    t = 0.0
    for _ in range(2):
        cosines = cosines_of(loss, vectors)
        t = 0.99 * t + 0.01 * np.mean([cosines[i, y] for i, y in enumerate(labels.tolist())])
        logits = cosines.copy()
        for i, y in enumerate(labels.tolist()):
            theta = math.acos(cosines[i, y])
            moved = math.cos(theta + 0.5)
            for j in range(CLASSES):
                if j != y and cosines[i, j] > moved:
                    logits[i, j] = cosines[i, j] * (t + cosines[i, j])
            logits[i, y] = moved if theta + 0.5 < math.pi else cosines[i, y] - 0.5 * math.sin(0.5)
        expected = cross_entropy(30 * logits, labels.numpy())
        assert loss.loss_of(vectors, labels).item() == pytest.approx(expected, rel=1e-4)
        assert float(loss.t) == pytest.approx(t, rel=1e-4)


def test_adacos_follows_the_angles_as_in_the_paper(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    labels, vectors = labels[:11], vectors[:11]  # an odd number of rows has one median
    loss = make_objective("adacos", encoder, CLASSES)
    s = math.sqrt(2) * math.log(CLASSES - 1)
    assert float(loss.running) == pytest.approx(s)
    cosines = cosines_of(loss, vectors)
    others = [sum(np.exp(s * row[j]) for j in range(CLASSES) if j != y) for row, y in zip(cosines, labels, strict=True)]
    median = np.median([math.acos(row[y]) for row, y in zip(cosines, labels, strict=True)])
    s = math.log(np.mean(others)) / math.cos(min(math.pi / 4, median))
    assert loss.loss_of(vectors, labels).item() == pytest.approx(cross_entropy(s * cosines, labels.numpy()), rel=1e-5)
    assert float(loss.running) == pytest.approx(s, rel=1e-5)


def test_plain_softmax_is_the_cross_entropy_of_dot_products(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    loss = make_objective("softmax", encoder, CLASSES)
    logits = vectors.double().numpy() @ loss.head.weight.detach().double().numpy().T
    assert loss.loss_of(vectors, labels).item() == pytest.approx(cross_entropy(logits, labels.numpy()), rel=1e-5)


@pytest.mark.parametrize("name", ["sparsemax", "entmax"])
def test_fenchel_young_losses_agree_with_the_entmax_package(name: str, encoder: SentenceTransformer, batch) -> None:
    import entmax

    vectors, labels, _ = batch
    loss = make_objective(name, encoder, CLASSES, scale=4.0)
    logits = torch.from_numpy(
        4 * with_target(cosines_of(loss, vectors), labels.numpy(), lambda c, i: c - 0.35)
    ).requires_grad_()
    reference = entmax.sparsemax_loss if name == "sparsemax" else entmax.entmax15_loss
    assert loss.loss_of(vectors, labels).item() == pytest.approx(reference(logits, labels).mean().item(), rel=1e-4)


def test_exact_is_the_probability_under_normal_noise(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    loss = make_objective("exact", encoder, CLASSES, scale=3.0)
    logits = 3 * with_target(cosines_of(loss, vectors), labels.numpy(), lambda c, i: c - 0.2)

    def right(row: np.ndarray, t: int) -> float:
        others = np.delete(row, t)
        return quad(lambda s: norm.pdf(s - row[t]) * np.prod(norm.cdf(s - others)), -12, 12)[0]

    expected = 1 - np.mean([right(row, t) for row, t in zip(logits, labels.tolist(), strict=True)])
    assert loss.loss_of(vectors, labels).item() == pytest.approx(expected, rel=1e-4)


def test_smooth_accuracy_and_sparse_softmax_agree_with_their_formulas(encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    accuracy = make_objective("smooth-accuracy", encoder, CLASSES)
    logits = 10 * with_target(cosines_of(accuracy, vectors), labels.numpy(), lambda c, i: c - 0.2)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = 1 - np.mean([row[t] for row, t in zip(p, labels.tolist(), strict=True)])
    assert accuracy.loss_of(vectors, labels).item() == pytest.approx(expected, rel=1e-4)
    sparse = make_objective("sparse-softmax", encoder, CLASSES, top=2)
    logits = 30 * with_target(cosines_of(sparse, vectors), labels.numpy(), lambda c, i: c - 0.35)
    rows = [np.log(np.exp(np.sort(row)[-2:]).sum()) - row[t] for row, t in zip(logits, labels.tolist(), strict=True)]
    assert sparse.loss_of(vectors, labels).item() == pytest.approx(np.mean(rows), rel=1e-4)


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name in ("sparse-softmax", "smooth-accuracy", "exact")]
)
def test_am_softmax_leads_fine_tuning(name: str, encoder: SentenceTransformer, batch) -> None:
    vectors, labels, _ = batch
    loss = make_objective(name, encoder, CLASSES)
    assert isinstance(loss, FineTuning)
    loss.leading = True
    led = make_objective("am-softmax", encoder, CLASSES, scale=loss.scale, margin=loss.margin)
    led.head.load_state_dict(loss.head.state_dict())
    assert loss.loss_of(vectors, labels).item() == pytest.approx(led.loss_of(vectors, labels).item(), rel=1e-6)


def test_taylor_takes_a_higher_order_for_more_classes_and_then_a_higher_scale() -> None:
    assert [taylor_order(classes)[0] for classes in (5, 57, 1000, 100_000)] == [2, 4, 4, 8]
    assert taylor_order(1000, order=2)[1] > 30
    assert taylor_order(1000, order=2, scale=30.0) == (2, 30.0)
    for order in (3, 12, 0):
        with pytest.raises(ValueError, match="order must be even"):
            taylor_order(10, order=order)


def test_lengths_are_those_before_normalisation(encoder: SentenceTransformer) -> None:
    make_objective("adaface", encoder, CLASSES)
    make_objective("magface", encoder, CLASSES)
    features = encoder(encoder.preprocess(["my card", "the rain again"]))
    assert features["sentence_embedding"].norm(dim=1).tolist() == pytest.approx([1, 1])
    assert features[NORM].tolist() == pytest.approx(encoder[0](encoder.preprocess(["my card", "the rain again"]))[
        "sentence_embedding"].norm(dim=1).tolist())  # fmt: skip
    assert features[NORM].requires_grad


# --- what is refused --------------------------------------------------------------------------------------------------


def test_unknown_names_options_and_values_are_refused_with_what_there_is(encoder: SentenceTransformer) -> None:
    with pytest.raises(SettingsError, match=r"no loss 'am'.*am-softmax, arcface"):
        make_objective("am", encoder, 5)
    with pytest.raises(SettingsError, match=r"adacos takes no scale; it takes margin \(0.0\)"):
        make_objective("adacos", encoder, 5, scale=3.0)
    with pytest.raises(SettingsError, match=r"sub-center takes a whole number for centers, got 2\.5"):
        make_objective("sub-center", encoder, 5, centers=2.5)
    refused: list[tuple[str, dict[str, float]]] = [
        ("sphereface", {"decay": -1.0}),
        ("sphereface", {"least": -1.0, "most": -1.0}),
        ("magface", {"longest": 1e300}),
        ("magface", {"pull": -1000.0}),
        ("adaface", {"momentum": 2.0}),
        ("adaface", {"h": -1.0}),
        ("curricularface", {"momentum": -1.0}),
        ("curricularface", {"momentum": 1e300}),
        ("am-softmax", {"scale": 0.0}),
        ("arcface", {"margin": 4.0}),
        ("sphereface", {"margin": 0.5}),
        ("combined", {"add": -1.0}),
        ("magface", {"widest": 0.1}),
        ("entmax", {"alpha": 1.0}),
        ("sparse-softmax", {"top": 0}),
        ("exact", {"points": 1}),
        ("sub-center", {"centers": 0}),
        ("taylor", {"order": 3}),
    ]
    for name, options in refused:
        with pytest.raises(SettingsError, match=f"{name} cannot be made: .*{next(iter(options))}"):
            make_objective(name, encoder, 5, **options)


# --- every objective in the pipeline ----------------------------------------------------------------------------------


def retrieval_of_new_sentences(encoder: Path) -> float:
    model = SentenceTransformer(str(encoder), device="cpu")
    rows = sentences(25, seed=99)
    codes = np.array([list(TOPICS).index(label) for _, label in rows])
    return retrieval(model.encode([text for text, _ in rows]), codes).map_at_r


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_saves_loads_and_continues(
    name: str, tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    recipe = ("--epochs", "3", "--batch-size", "16", "--learning-rate", "0.2", "--held-out", "0", "--loss", name)
    data, first, second = write_csv(sentences(20)), tmp_path / "first", tmp_path / "second"
    assert train([str(data), "--out", str(first), "--encoder", str(tiny_encoder), *recipe]) == 0
    assert retrieval_of_new_sentences(first) > retrieval_of_new_sentences(tiny_encoder) + 0.2
    assert train([str(data), "--out", str(second), "--encoder", str(first), *recipe]) == 0
    losses = [json.loads((out / "training.json").read_text())["metrics"]["loss"] for out in (first, second)]
    assert all(math.isfinite(point["loss"]) for curve in losses for point in curve)
    assert retrieval_of_new_sentences(second) > retrieval_of_new_sentences(first) - 0.05
    if OBJECTIVES[name].shape == "labelled":
        weight, labels = load_head(first)
        assert len(weight) == len(labels)
        assert sorted(set(labels)) == sorted(TOPICS)


@pytest.mark.parametrize("shape", ["pairs", "scored pairs", "triplets"])
def test_partners_are_of_the_class_they_should_be(shape) -> None:
    rows = [*sentences(10), ("one alone", "alone")]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    codes = [sorted(set(labels)).index(label) for label in labels]
    label_of = dict(rows)
    columns = reshape(texts, codes, shape, seed=0)
    assert columns["anchor"] == texts
    for at, anchor in enumerate(texts):
        if shape == "scored pairs":
            assert (label_of[columns["partner"][at]] == label_of[anchor]) == bool(columns["label"][at])
            continue
        assert label_of[columns["positive"][at]] == label_of[anchor]
        assert columns["positive"][at] != anchor or label_of[anchor] == "alone"
        if shape == "triplets":
            assert label_of[columns["negative"][at]] != label_of[anchor]
    assert columns != reshape(texts, codes, shape, seed=1)


# --- class weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in OBJECTIVES.items() if entry.shape == "labelled"])
def test_labels_that_are_no_classes_and_weights_of_others_are_refused(
    name: str, encoder: SentenceTransformer, batch
) -> None:
    vectors, labels, lengths = batch
    loss = make_objective(name, encoder, CLASSES)
    for wrong in (CLASSES, -1, -100):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, {CLASSES}\), got {wrong}"):
            loss.loss_of(vectors, labels.index_fill(0, torch.tensor([3]), wrong), lengths)
    with pytest.raises(ValueError, match="12 integers, one a text"):
        loss.loss_of(vectors, labels.float(), lengths)
    with pytest.raises(ValueError, match="12 integers, one a text"):
        loss.loss_of(vectors, labels[:, None], lengths)
    with pytest.raises(ValueError, match="a batch without a text"):
        loss.loss_of(vectors[:0], labels[:0], lengths[:0])
    for shape in ((1, 16), (16,), (CLASSES + 4, 16)):
        with pytest.raises(ValueError, match=rf"must have the shape \({CLASSES}, 16\)"):
            loss.imprint(torch.ones(shape))


def test_class_means_are_unit_means_of_directions() -> None:
    vectors = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-3.0, 0.0]])
    means = class_means(vectors, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[0.5**0.5, 0.5**0.5], [-1.0, 0.0]]))


def test_a_class_without_vectors_has_no_mean() -> None:
    with pytest.raises(DataError, match="Class 1 has no mean vector"):
        class_means(torch.eye(2), torch.tensor([0, 0]), 2)
    with pytest.raises(DataError, match="'b' has no mean vector"):
        class_means(torch.eye(2), torch.tensor([0, 0]), 2, ["a", "b"])
    with pytest.raises(DataError, match="'b' has no mean vector"):  # another turn of its pictures
        class_means(torch.eye(3), torch.tensor([0, 1, 2]), 4, ["a", "b"])


def test_training_goes_on_from_the_class_weights_of_the_encoder(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    data, flags = write_csv(sentences(20)), ("--batch-size", "16", "--held-out", "0", "--loss", "am-softmax")
    first, bare = tmp_path / "first", tmp_path / "bare"
    command = [str(data), "--encoder", str(tiny_encoder), "--out", str(first), *flags]
    assert train([*command, "--epochs", "2", "--learning-rate", "0.2", "--head-learning-rate", "0.2"]) == 0
    shutil.copytree(first, bare)
    (bare / HEAD).unlink()
    weight, labels = load_head(first)
    still = ("--epochs", "1", "--learning-rate", "1e-9", "--head-learning-rate", "1e-9")
    cosines = {}
    for encoder in (first, bare):
        out = tmp_path / f"{encoder.name}-again"
        assert train([str(data), "--encoder", str(encoder), "--out", str(out), *flags, *still]) == 0
        again, same = load_head(out)
        assert same == labels
        cosines[encoder.name] = float(torch.cosine_similarity(weight, again).min())
    assert cosines["first"] > 1 - 1e-5
    assert cosines["bare"] < 1 - 1e-3, "class means, where there is nothing to go on from"


def test_the_head_survives_saving(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    save_head(tmp_path, weight, ["a", "ünï", "c, d"])
    loaded, labels = load_head(tmp_path)
    assert torch.equal(loaded, weight)
    assert labels == ["a", "ünï", "c, d"]
