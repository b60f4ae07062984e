"""From labelled rows to a trained encoder on disk: read, check, split, imprint, train, evaluate, write."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from index.encoder_files import RECORD, modality_of, open_sentence_transformer
from index.errors import SettingsError
from index.pictures import read_content
from index.rows import Row
from training import distributed
from training.assessment import Embedded, assess
from training.averaging import copied, mix
from training.capacity import check_memory, check_processes
from training.card import CARD, render_card
from training.config import Kind, Recipe, TrainSettings
from training.data import (
    Split,
    check_classes,
    choose_unseen,
    data_fingerprint,
    label_of,
    split_rows,
)
from training.evaluation import Classes, Retrieval, Vectors, nearest_class_mean, retrieval
from training.folder import EVALUATION, FORMAT, REPORT, check_target, new_folder
from training.heads import HEAD, class_means, load_head
from training.image_data import PictureCollator, canvases, new_image_model
from training.last_layer import behind_last_layer, drop_last_layer
from training.more_classes import check_further, composed_means, learned_classes, origin, with_turned_classes
from training.objectives import Objective, make_objective
from training.pairs import rows_of_pairs
from training.projection import Frozen, VectorCollator, is_frozen, projected
from training.report import render_report
from training.review import Fault, review, summary
from training.run import Run, command_of, write_config
from training.static import is_static, only_used_tokens
from training.text_checks import check_readable, cut_texts
from training.trainer import Rows, fit
from training.without_effect import check_effect
from training.writing import config_of, settle, versions, write_encoder

PER_CLASS = 30
"""Rows of a class that are encoded for its mean and as the gallery of the held-out rows: more change little."""
SHOWN = 5


def train_encoder(settings: TrainSettings, console: Console) -> dict[str, Any]:
    """Trains as `settings` say, writes the model folder and returns its record (`training.json`).

    Raises `SurematchError`s for data or settings that cannot be used; then nothing is written. When interrupted, a run
    folder beside `settings.out` holds what `settings.resume` continues from.
    """
    with distributed.processes():
        if distributed.rank() == 0:
            return _train_encoder(settings, console)
        with tempfile.TemporaryDirectory() as elsewhere:  # process 0 alone reports and writes
            out = Path(elsewhere) / settings.out.name
            return _train_encoder(settings.model_copy(update={"out": out}), Console(quiet=True))


def _train_encoder(settings: TrainSettings, console: Console) -> dict[str, Any]:
    started = time.perf_counter()
    check_target(settings.out, settings.overwrite)
    prepared = _prepare(settings, console)
    run = Run(settings.out, {"data": data_fingerprint([*prepared.rows, *prepared.unseen]), **settings.shaping()})
    checkpoint = run.begin(resume=settings.resume, overwrite=settings.overwrite)
    with run, new_folder(settings.out) as folder:
        write_config(settings, run.folder)
        record, evaluation = _train(settings, prepared, run.checkpoints, checkpoint, console, folder)
        record["seconds"] = round(time.perf_counter() - started, 1)
        (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / EVALUATION).write_text(json.dumps(evaluation, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / REPORT).write_text(render_report(record, evaluation), encoding="utf-8")
        (folder / CARD).write_text(render_card(record, evaluation), encoding="utf-8")
        write_config(settings, folder)
        settle(folder)
        run.finished = True
    return record


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Rows of the classes that train, those of classes never seen, and how the former are split."""

    rows: list[Row]
    labels: list[str]
    classes: Classes
    split: Split
    unseen: list[Row]
    faults: list[Fault]
    frozen: Frozen | None


def _prepare(settings: TrainSettings, console: Console) -> _Prepared:
    frozen = Frozen(settings.encoder) if is_frozen(settings.encoder) else None
    everything, faults = _read(settings, frozen)
    for line in summary(faults):
        console.print(f"[yellow]Report:[/] {escape(line)}", highlight=False)
    labels = check_classes(everything)
    away = choose_unseen(labels, settings.unseen_classes, settings.seed)
    rows = [row for row in everything if row.label not in away]
    labels = [label for label in labels if label not in away]
    codes = {label: code for code, label in enumerate(labels)}
    classes = np.array([codes[label_of(row)] for row in rows], dtype=np.int64)
    split = split_rows(rows, settings.held_out, settings.seed)
    unseen = [row for row in everything if row.label in away]
    console.print(
        f"{len(rows):,} rows in {len(labels):,} classes: {len(split.train):,} train, {len(split.held_out):,} held out."
    )
    if unseen:
        console.print(f"{len(unseen):,} more rows in {len(away):,} classes never seen, to measure with.")
    return _Prepared(rows, labels, classes, split, unseen, faults, frozen)


def _read(settings: TrainSettings, frozen: Frozen | None) -> tuple[list[Row], list[Fault]]:
    """The rows that can train, and what is the matter with the others."""
    empty: list[Row] = []
    modality = modality_of(settings.encoder)
    if modality == "image" and settings.pair_text is not None:
        raise SettingsError("--pair-text: pairs of pictures cannot be learned from. Give each picture a label.")
    rows = read_content(modality, settings.data, text=settings.text, label=settings.label, faulty=empty)
    if frozen is not None:
        rows, unusable = frozen.usable(rows)
        empty += unusable
    faults: list[Fault] = []
    if settings.pair_text is not None:
        _, faults = review([], empty, skip=settings.skip_faulty)
        rows, torn = rows_of_pairs(rows, settings.pair_text, skip=settings.skip_faulty)
        return rows, [*faults, *torn]
    return review(rows, empty, skip=settings.skip_faulty)


def _train(
    settings: TrainSettings,
    prepared: _Prepared,
    checkpoints: Path,
    resume: Path | None,
    console: Console,
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains, writes encoder, head and keys of the trained rows to `folder`; returns the record and the evaluation."""
    rows, labels, classes, split = prepared.rows, prepared.labels, prepared.classes, prepared.split
    set_seed(settings.seed)
    disable_progress_bar()
    model, kind = _start(settings, [*rows, *prepared.unseen], prepared.frozen, resume)
    recipe = Recipe.resolve(settings, kind)
    if resume is None:  # a run that an earlier version began with more goes on
        check_effect(settings, recipe, kind, getattr(model[0], "size", None))
    check_further(settings, recipe.loss, kind)
    learned = learned_classes(settings, len(labels))
    check_processes(settings, recipe)
    check_memory(recipe, learned, int(model.get_embedding_dimension() or 0), origin(settings, len(labels)))
    check_readable(model, kind, [*rows, *prepared.unseen])
    warnings = cut_texts(model, kind, rows)
    for warning in warnings:
        console.print(f"[yellow]Warning:[/] {warning}", highlight=False)

    contents = partial(_contents, model, kind, prepared.frozen)
    texts, unseen_texts = contents(rows), contents(prepared.unseen)
    unseen_labels, unseen_classes = np.unique([label_of(row) for row in prepared.unseen], return_inverse=True)

    def on_unseen() -> Retrieval:
        return retrieval(_encode(model, unseen_texts), unseen_classes)

    sample = _some_of_each(split.train, classes)
    loss = make_objective(recipe.loss, model, learned, scale=recipe.scale, margin=recipe.margin, **settings.options)
    console.print(f"Training '{settings.encoder}' with {recipe.loss}: {_describe(recipe)}.", highlight=False)
    before = _encode(model, [texts[at] for at in sample])
    metrics: dict[str, Any] = {"start": _evaluate(model, texts, classes, split, sample, before)}
    if unseen_texts:
        metrics["unseen_start"] = asdict(on_unseen())
    train_texts, train_classes = [texts[at] for at in split.train], classes[split.train]
    vectors, of_vectors = before, classes[sample]
    if settings.turned_classes:
        turned, of_vectors = with_turned_classes([texts[at] for at in sample], of_vectors, len(labels))
        vectors = _encode(model, turned)
        train_texts, train_classes = with_turned_classes(train_texts, train_classes, len(labels))
    # Class means of a network that knows nothing say nothing, and without a layer behind it lie close together: random
    # weights are no worse a start, except for losses that need a near one.
    informed = kind != "image" or Path(settings.encoder).is_dir()
    if isinstance(loss, Objective) and (informed or loss.needs_imprint):
        encoded = len(labels) if settings.composed_classes else learned
        weights = class_means(torch.from_numpy(vectors), torch.from_numpy(of_vectors), encoded, labels)
        if settings.composed_classes:
            weights = composed_means(weights)
        loss.imprint(behind_last_layer(model, _earlier_weights(settings.encoder, labels, weights)))
    start = copied(model) if recipe.start_share else {}
    watched = bool(unseen_texts) and (settings.patience is not None or kind == "static")
    used = [*train_texts, *unseen_texts] if watched else train_texts
    with only_used_tokens(model, used) if kind == "static" else nullcontext():
        metrics["loss"] = fit(
            model,
            loss,
            Rows(
                [rows[at].text for at in split.train] * (len(train_texts) // len(split.train)),
                train_classes.tolist(),
                lambda at: _name([rows[split.train[i % len(split.train)]] for i in at]),
                _collator(model, kind, train_texts, train_classes, settings),
            ),
            settings=settings,
            recipe=recipe,
            kind=kind,
            work=checkpoints,
            resume=resume,
            measure=(lambda: on_unseen().map_at_r) if watched else None,
            console=console,
        )
    mix(model, start, recipe.start_share)
    dropped = drop_last_layer(model)
    after = _encode(model, [texts[at] for at in sample])
    metrics["held_out"] = _evaluate(model, texts, classes, split, sample, after)
    if unseen_texts:
        metrics["unseen"] = asdict(on_unseen())
    evaluation = assess(
        _embedded(model, contents, [rows[at] for at in split.held_out], classes[split.held_out], labels),
        Embedded([_shown(rows[at]) for at in sample], after, classes[sample], labels),
        _embedded(model, contents, prepared.unseen, unseen_classes, unseen_labels.tolist()),
        np.bincount(classes[split.train], minlength=len(labels)),
        seed=settings.seed,
    )
    means = None
    if dropped:
        means = class_means(torch.from_numpy(after), torch.from_numpy(classes[sample]), len(labels), labels)
    write_encoder(folder, model, prepared.frozen, loss, labels, [rows[at] for at in split.train], means)
    record = {
        "format": FORMAT,
        "command": command_of("train", settings),
        "settings": settings.model_dump(mode="json", exclude={"json_", "overwrite", "resume"}),
        "recipe": {"kind": kind, **asdict(recipe)},
        "objective": {"name": recipe.loss, **config_of(loss)},
        "data": {
            "fingerprint": data_fingerprint(rows),
            "rows": len(rows),
            "classes": len(labels),
            "learned_classes": learned,
            "report": [fault.as_json() for fault in prepared.faults],
        },
        "held_out": {"rows": len(split.held_out), "share_wanted": settings.held_out, "per_class_at_least": 2},
        "unseen": {"rows": len(unseen_texts), "labels": sorted({label_of(row) for row in prepared.unseen})},
        "labels": labels,
        "seed": settings.seed,
        "versions": versions(),
        "metrics": metrics,
        "warnings": warnings,
    }
    return record, evaluation


def _embedded(
    model: SentenceTransformer,
    contents: Callable[[Sequence[Row]], list[Any]],
    rows: Sequence[Row],
    classes: Classes,
    labels: Sequence[str],
) -> Embedded | None:
    """The rows with their vectors, None for no rows."""
    if not rows:
        return None
    return Embedded([_shown(row) for row in rows], _encode(model, contents(rows)), classes, labels)


def _shown(row: Row) -> str:
    """How a report names a row: its text, or its picture's name."""
    return row.text if row.image is None else row.image.name


def _start(
    settings: TrainSettings, rows: Sequence[Row], frozen: Frozen | None, resume: Path | None
) -> tuple[SentenceTransformer, Kind]:
    """What is trained, as it starts."""
    if frozen is not None:
        return frozen.model(), "frozen"
    if modality_of(settings.encoder) == "text":
        model = open_sentence_transformer(settings.encoder)
        return model, "static" if is_static(model) else "transformer"
    if Path(settings.encoder).is_dir():
        return open_sentence_transformer(settings.encoder), "image"
    return new_image_model(settings, rows, resume), "image"


def _contents(model: SentenceTransformer, kind: Kind, frozen: Frozen | None, rows: Sequence[Row]) -> list[Any]:
    """What is given for each row: its text, its picture at the network's size, or a frozen encoder's vector."""
    if frozen is not None:
        return list(frozen.vectors(rows))
    return canvases(model, rows) if kind == "image" else [row.text for row in rows]


def _collator(
    model: SentenceTransformer, kind: Kind, contents: Sequence[Any], classes: Classes, settings: TrainSettings
) -> Any:
    """What makes batches of pictures or vectors; None: the library's own, of texts."""
    if kind == "frozen":
        return VectorCollator(contents)
    return PictureCollator(model, contents, classes, settings) if kind == "image" else None


def _earlier_weights(encoder: str, labels: Sequence[str], means: torch.Tensor) -> torch.Tensor:
    """`means`, with the class weights that an encoder of ours was trained with where it knows a label."""
    if not (Path(encoder) / HEAD).is_file():
        return means
    weight, known = load_head(Path(encoder))
    row_of = {label: at for at, label in enumerate(known)}
    for at, label in enumerate(labels):
        if label in row_of and weight.shape[1] == means.shape[1]:
            means[at] = torch.nn.functional.normalize(weight[row_of[label]], dim=0)
    return means


def _encode(model: SentenceTransformer, texts: Sequence[Any]) -> Vectors:
    if isinstance(model[0], Dense):
        return projected(model, texts)
    vectors = model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)


def _evaluate(
    model: SentenceTransformer, texts: Sequence[Any], classes: Classes, split: Split, sample: Classes, gallery: Vectors
) -> dict[str, float] | None:
    """How the held-out rows find their class among the rows at `sample`, whose vectors are `gallery`."""
    if not len(split.held_out):
        return None
    queries = _encode(model, [texts[at] for at in split.held_out])
    result = retrieval(queries, classes[split.held_out], gallery, classes[sample])
    means = nearest_class_mean(queries, classes[split.held_out], gallery, classes[sample])
    return {
        **asdict(result),
        "nearest_class_mean": means,
        "gallery": len(sample),
    }


def _some_of_each(train: Classes, classes: Classes) -> Classes:
    """Positions of up to `PER_CLASS` training rows of each class, ascending."""
    order = train[np.argsort(classes[train], kind="stable")]
    sizes = np.bincount(classes[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < PER_CLASS])


def _name(rows: Sequence[Row]) -> str:
    """A batch, by the lines of its first rows."""
    named = "; ".join(f"{row.file} line {row.line} ({row.text[:40]!r})" for row in rows[:SHOWN])
    return named + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def _describe(recipe: Recipe) -> str:
    shape = [f"{name} {value:g}" for name in ("scale", "margin") if (value := getattr(recipe, name)) is not None]
    back = [f"{recipe.start_share:.0%} of the way back to the start"] if recipe.start_share else []
    steps = (
        f"{recipe.epochs:g} epochs, {recipe.batch_size} rows a step, learning rates {recipe.learning_rate:g} "
        f"(encoder) and {recipe.head_learning_rate:g} (class weights)"
    )
    return ", ".join([*shape, steps, *back])
