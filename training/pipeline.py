"""From labelled rows to a trained encoder on disk: read, check, split, imprint, train, evaluate, write."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from index.encoder_files import RECORD, TRAINED_ROWS, open_sentence_transformer
from index.errors import DataError
from index.rows import Row, read_rows
from training.config import Kind, Recipe, TrainSettings
from training.data import Split, check_classes, data_fingerprint, label_of, split_rows, trained_row_keys
from training.evaluation import Classes, Vectors, nearest_class_mean, retrieval
from training.folder import FORMAT, check_target, new_folder
from training.heads import class_means, save_head
from training.objective import AMSoftmaxLoss
from training.static import is_static, only_used_tokens, unreadable
from training.trainer import fit

PER_CLASS = 30
"""Rows of a class that are encoded for its mean and as the gallery of the held-out rows: more change little."""
SHOWN = 5
_VERSIONS = ("surematch", "torch", "sentence-transformers", "transformers", "tokenizers", "numpy")


def train_encoder(settings: TrainSettings, console: Console) -> dict[str, Any]:
    """Trains as `settings` say, writes the model folder and returns its record (`training.json`).

    Raises `SurematchError`s for data or settings that cannot be used; then, as when interrupted, nothing is written.
    """
    started = time.perf_counter()
    check_target(settings.out, settings.overwrite)
    rows = read_rows(settings.data, text=settings.text, label=settings.label)
    labels = check_classes(rows)
    codes = {label: code for code, label in enumerate(labels)}
    classes = np.array([codes[label_of(row)] for row in rows], dtype=np.int64)
    split = split_rows(rows, settings.held_out, settings.seed)
    console.print(
        f"{len(rows):,} rows in {len(labels):,} classes: {len(split.train):,} train, {len(split.held_out):,} held out."
    )

    set_seed(settings.seed)
    disable_progress_bar()
    model = open_sentence_transformer(settings.encoder)
    kind: Kind = "static" if is_static(model) else "transformer"
    recipe = Recipe.resolve(settings, kind)
    _check_readable(model, kind, rows)
    warnings = _cut_texts(model, kind, rows)
    for warning in warnings:
        console.print(f"[yellow]Warning:[/] {warning}", highlight=False)

    texts = [row.text for row in rows]
    sample = _some_of_each(split.train, classes)
    console.print(f"Training '{settings.encoder}' with {settings.loss}: {_describe(recipe)}.", highlight=False)
    before = _encode(model, [texts[at] for at in sample])
    metrics: dict[str, Any] = {"start": _evaluate(model, texts, classes, split, sample, before)}
    loss = AMSoftmaxLoss(model, len(labels), settings.scale, settings.margin)
    loss.imprint(class_means(torch.from_numpy(before), torch.from_numpy(classes[sample]), len(labels)))

    with new_folder(settings.out) as folder:
        train_texts = [texts[at] for at in split.train]
        with only_used_tokens(model, train_texts) if kind == "static" else nullcontext():
            curve = fit(
                model,
                loss,
                train_texts,
                classes[split.train].tolist(),
                recipe=recipe,
                kind=kind,
                warmup=settings.warmup,
                seed=settings.seed,
                work=folder / "work",
                console=console,
            )
        after = _encode(model, [texts[at] for at in sample])
        metrics["held_out"] = _evaluate(model, texts, classes, split, sample, after)
        metrics["loss"] = curve
        record = {
            "format": FORMAT,
            "settings": settings.model_dump(mode="json", exclude={"json_", "overwrite"}),
            "recipe": {"kind": kind, **asdict(recipe)},
            "data": {"fingerprint": data_fingerprint(rows), "rows": len(rows), "classes": len(labels)},
            "held_out": {"rows": len(split.held_out), "share_wanted": settings.held_out, "per_class_at_least": 2},
            "labels": labels,
            "seed": settings.seed,
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
            "metrics": metrics,
            "warnings": warnings,
            "seconds": round(time.perf_counter() - started, 1),
        }
        _write(folder, model, loss, labels, record, [rows[at] for at in split.train])
    return record


def _write(
    folder: Path,
    model: SentenceTransformer,
    loss: AMSoftmaxLoss,
    labels: Sequence[str],
    record: dict[str, Any],
    trained: Sequence[Row],
) -> None:
    for leftover in sorted(folder.rglob("*"), reverse=True):
        leftover.rmdir() if leftover.is_dir() else leftover.unlink()
    model.save_pretrained(str(folder), create_model_card=False)
    save_head(folder, loss.head.weight, labels)
    np.save(folder / TRAINED_ROWS, trained_row_keys(trained), allow_pickle=False)
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # weights are saved as 0600; a container's user must read them
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _encode(model: SentenceTransformer, texts: Sequence[str]) -> Vectors:
    vectors = model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)


def _evaluate(
    model: SentenceTransformer, texts: Sequence[str], classes: Classes, split: Split, sample: Classes, gallery: Vectors
) -> dict[str, float] | None:
    """How the held-out rows find their class among the rows at `sample`, whose vectors are `gallery`."""
    if not len(split.held_out):
        return None
    queries = _encode(model, [texts[at] for at in split.held_out])
    result = retrieval(queries, classes[split.held_out], gallery, classes[sample])
    means = nearest_class_mean(queries, classes[split.held_out], gallery, classes[sample])
    return {
        "recall_at_1": result.recall_at_1,
        "map_at_r": result.map_at_r,
        "nearest_class_mean": means,
        "queries": result.queries,
        "gallery": len(sample),
    }


def _some_of_each(train: Classes, classes: Classes) -> Classes:
    """Positions of up to `PER_CLASS` training rows of each class, ascending."""
    order = train[np.argsort(classes[train], kind="stable")]
    sizes = np.bincount(classes[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < PER_CLASS])


def _check_readable(model: SentenceTransformer, kind: Kind, rows: Sequence[Row]) -> None:
    empty = unreadable(model, [row.text for row in rows]) if kind == "static" else []
    if empty:
        named = ", ".join(f"{rows[at].file} line {rows[at].line} ({rows[at].text[:40]!r})" for at in empty[:SHOWN])
        raise DataError(
            f"The encoder finds no word it knows in {len(empty)} of {len(rows)} texts: {named}"
            f"{' and others' if len(empty) > SHOWN else ''}. Reword these rows, delete them, or train another encoder."
        )


def _cut_texts(model: SentenceTransformer, kind: Kind, rows: Sequence[Row]) -> list[str]:
    """A warning that names the texts longer than the encoder reads, or nothing."""
    if kind == "static" or not model.max_seq_length:
        return []
    limit = int(model.max_seq_length)
    tokens = model.tokenizer([row.text for row in rows], truncation=False, verbose=False)["input_ids"]
    cut = [row for row, ids in zip(rows, tokens, strict=True) if len(ids) > limit]
    if not cut:
        return []
    named = ", ".join(f"{row.file} line {row.line}" for row in cut[:SHOWN]) + (", ..." if len(cut) > SHOWN else "")
    return [f"{len(cut)} texts are longer than the {limit} tokens this encoder reads; their ends are ignored: {named}."]


def _describe(recipe: Recipe) -> str:
    return (
        f"{recipe.epochs:g} epochs, {recipe.batch_size} rows a step, learning rates {recipe.learning_rate:g} "
        f"(encoder) and {recipe.head_learning_rate:g} (class weights)"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "not installed"
