"""From labelled rows to a trained encoder on disk: read, check, split, imprint, train, evaluate, write."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from index.data.rows import Row
from index.encoders.files import RECORD
from index.verbs.terminal import Terminal, styled
from training import distributed
from training.config import Recipe, TrainSettings
from training.data.more_classes import check_further, learned_classes, origin, with_turned_classes
from training.data.preparation import Prepared, prepare
from training.data.rows import SPLIT, Split, data_fingerprint, label_of
from training.data.text_checks import check_readable, cut_texts
from training.learning.averaging import copied, mix
from training.learning.capacity import centers_of, check_memory, check_processes
from training.learning.imprint import imprint, means_of
from training.learning.learner import Learner
from training.learning.trainer import Rows, fit
from training.measures.assessment import Embedded, assess
from training.measures.retrieval import Classes, Ranking, Retrieval, means, nearest_class_mean, rank, retrieval
from training.objectives import check_options, make_objective
from training.objectives.without_effect import check_effect
from training.parts.last_layer import drop_last_layer
from training.parts.static import only_used_tokens
from training.reports.card import CARD, render_card
from training.reports.report import render_report
from training.runs.folder import EVALUATION, FORMAT, REPORT, new_folder
from training.runs.run import Run, check_place, command_of, start_of, write_config
from training.runs.writing import config_of, settle, versions, write_encoder

PER_CLASS = 30
"""Rows of a class that are encoded for the mean it starts at: more change little."""
COMPARED, ASKED = 200_000_000, 2_000
"""Held-out rows are compared with every training row: so many comparisons are made, and at least so many rows drawn."""
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
            return _train_encoder(settings.model_copy(update={"out": out}), Terminal(quiet=True))


def _train_encoder(settings: TrainSettings, console: Console) -> dict[str, Any]:
    started = time.perf_counter()
    check_place(settings.out, settings.overwrite)
    prepared = prepare(settings, console)
    data = data_fingerprint([*prepared.rows, *prepared.unseen])
    run = Run(settings.out, {"data": data, "split": SPLIT, **start_of(settings.encoder), **settings.shaping()})
    begun = run.begun(resume=settings.resume, overwrite=settings.overwrite)
    with begun as checkpoint, new_folder(settings.out, settings.overwrite, run.folder) as folder:
        write_config(settings, run.folder)
        record, evaluation = _train(settings, prepared, run.checkpoints, checkpoint, console, folder)
        record["seconds"] = round(time.perf_counter() - started, 1)
        for name, content in _told(record, evaluation).items():
            # a path that is no Unicode is shown as JSON escapes it
            (folder / name).write_text(content, encoding="utf-8", errors="backslashreplace")
        write_config(settings, folder)
        settle(folder)
        run.finished = True
    return record


def _told(record: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, str]:
    """Files that tell about the encoder, by name."""
    return {
        RECORD: json.dumps(record, indent=2, ensure_ascii=False) + "\n",
        EVALUATION: json.dumps(evaluation, ensure_ascii=False) + "\n",
        REPORT: render_report(record, evaluation),
        CARD: render_card(record, evaluation),
    }


def _train(
    settings: TrainSettings,
    prepared: Prepared,
    checkpoints: Path,
    resume: Path | None,
    console: Console,
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains, writes encoder, head and keys of the trained rows to `folder`; returns the record and the evaluation."""
    rows, labels, classes, split = prepared.rows, prepared.labels, prepared.classes, prepared.split
    set_seed(settings.seed)
    disable_progress_bar()
    learner = Learner.start(settings, prepared.everything, prepared.frozen, resume)
    recipe = Recipe.resolve(settings, learner.kind)
    learned = _check(settings, recipe, learner, prepared, resume)
    warnings = cut_texts(learner.model, learner.kind, rows)
    for warning in warnings:
        console.print(styled("Warning:", "yellow"), warning)

    contents, unseen = learner.contents(rows), learner.contents(prepared.unseen)
    unseen_labels, unseen_classes = np.unique([label_of(row) for row in prepared.unseen], return_inverse=True)

    def on_unseen() -> Retrieval:
        return retrieval(learner.encode(unseen), unseen_classes)

    sample = _some_of_each(split.train, classes)
    shown, of_shown = [contents[at] for at in sample], classes[sample]
    asked = _drawn(split, settings.seed)
    gallery = split.train if len(asked) else sample
    of_mean = np.searchsorted(gallery, sample)

    def embedded() -> tuple[Embedded | None, Embedded]:
        vectors = learner.encode([contents[at] for at in gallery])
        among = Embedded([_shown(rows[at]) for at in gallery], vectors, classes[gallery], labels)
        return _embedded(learner, [rows[at] for at in asked], classes[asked], labels), among

    loss = make_objective(
        recipe.loss, learner.model, learned, scale=recipe.scale, margin=recipe.margin, **settings.options
    )
    console.print(f"Training '{settings.encoder}' with {recipe.loss}: {_describe(recipe)}.")
    held, among = embedded()
    metrics: dict[str, Any] = {"start": _evaluate(held, among)[1]}
    if unseen:
        metrics["unseen_start"] = asdict(on_unseen())
    imprint(settings, learner, loss, labels, learned, shown, of_shown, among.vectors[of_mean])
    del held, among  # as large as all rows, and no more needed
    start = copied(learner.model) if recipe.start_share else {}
    watched = bool(unseen) and (settings.patience is not None or learner.kind == "static")
    train_rows = _training_rows(settings, learner, rows, contents, classes, split, len(labels))
    with _used_tokens(learner, [*train_rows.texts, *(unseen if watched else [])]):
        metrics["loss"] = fit(
            learner.model,
            loss,
            train_rows,
            settings=settings,
            recipe=recipe,
            kind=learner.kind,
            work=checkpoints,
            resume=resume,
            measure=(lambda: on_unseen().map_at_r) if watched else None,
            console=console,
        )
    mix(learner.model, start, recipe.start_share)
    dropped = drop_last_layer(learner.model)
    held, among = embedded()
    ranking, metrics["held_out"] = _evaluate(held, among)
    if unseen:
        metrics["unseen"] = asdict(on_unseen())
    evaluation = assess(
        held,
        among,
        ranking,
        _embedded(learner, prepared.unseen, unseen_classes, unseen_labels.tolist()),
        np.bincount(classes[split.train], minlength=len(labels)),
        seed=settings.seed,
    )
    means = means_of(among.vectors[of_mean], of_shown, len(labels), labels) if dropped else None
    write_encoder(folder, learner.model, prepared.frozen, loss, labels, [rows[at] for at in split.train], means)
    return _record(settings, recipe, learner, loss, prepared, learned, metrics, warnings), evaluation


def _check(settings: TrainSettings, recipe: Recipe, learner: Learner, prepared: Prepared, resume: Path | None) -> int:
    """How many classes will be learned. Raises `SettingsError` or `DataError` for what cannot be trained."""
    count = len(prepared.labels)
    check_options(recipe.loss, {"scale": recipe.scale, "margin": recipe.margin, **settings.options})
    if resume is None:  # a run that an earlier version began with more goes on
        check_effect(settings, recipe, learner.kind, getattr(learner.model[0], "size", None))
    check_further(settings, recipe.loss, learner.kind)
    learned = learned_classes(settings, count)
    check_processes(settings, recipe)
    heads = learned * centers_of(recipe.loss, settings.options)
    came_from = origin(settings, count) if heads == learned else " and their centers"
    check_memory(recipe, heads, learner.dimension, came_from)
    check_readable(learner.model, learner.kind, prepared.everything)
    return learned


def _training_rows(
    settings: TrainSettings,
    learner: Learner,
    rows: Sequence[Row],
    contents: Sequence[Any],
    classes: Classes,
    split: Split,
    count: int,
) -> Rows:
    """The rows that train, of `count` classes, and those further ones that are made before the training."""
    trained = [rows[at] for at in split.train]
    given, codes = [contents[at] for at in split.train], classes[split.train]
    if settings.turned_classes:
        given, codes = with_turned_classes(given, codes, count)
    return Rows(
        [row.text for row in trained] * (len(given) // len(trained)),
        codes.tolist(),
        lambda at: _name([trained[i % len(trained)] for i in at]),
        learner.collator(given, codes, settings),
    )


def _used_tokens(learner: Learner, texts: Sequence[str]) -> AbstractContextManager[None]:
    return only_used_tokens(learner.model, texts) if learner.kind == "static" else nullcontext()


def _record(
    settings: TrainSettings,
    recipe: Recipe,
    learner: Learner,
    loss: nn.Module,
    prepared: Prepared,
    learned: int,
    metrics: dict[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """What `training.json` says."""
    return {
        "format": FORMAT,
        "command": command_of("train", settings),
        "settings": settings.model_dump(mode="json", exclude={"json_", "overwrite", "resume"}),
        "recipe": {"kind": learner.kind, **asdict(recipe)},
        "objective": {"name": recipe.loss, **config_of(loss)},
        "data": {
            "fingerprint": data_fingerprint(prepared.rows),
            "rows": len(prepared.rows),
            "classes": len(prepared.labels),
            "learned_classes": learned,
            "report": [fault.as_json() for fault in prepared.faults],
        },
        "held_out": {
            "rows": len(prepared.split.held_out),
            "share_wanted": settings.held_out,
            "per_class_at_least": 2,
        },
        "unseen": {
            "rows": len(prepared.unseen),
            "labels": sorted({label_of(row) for row in prepared.unseen}),
            "chose_the_weights": settings.patience is not None,
        },
        "labels": prepared.labels,
        "seed": settings.seed,
        "versions": versions(),
        "metrics": metrics,
        "warnings": warnings,
    }


def _embedded(learner: Learner, rows: Sequence[Row], classes: Classes, labels: Sequence[str]) -> Embedded | None:
    """The rows with their vectors, None for no rows."""
    if not rows:
        return None
    return Embedded([_shown(row) for row in rows], learner.encode(learner.contents(rows)), classes, labels)


def _shown(row: Row) -> str:
    """How a report names a row: its text, or its picture's name."""
    return row.text if row.image is None else row.image.name


def _evaluate(held: Embedded | None, among: Embedded) -> tuple[Ranking | None, dict[str, float] | None]:
    """How the rows `held` out find their class `among` others: what each found, and the means."""
    if held is None:
        return None, None
    told = held.vectors, held.classes, among.vectors, among.classes
    ranking = rank(*told)
    mean = nearest_class_mean(*told)
    return ranking, {**asdict(means(ranking)), "nearest_class_mean": mean, "gallery": len(among.vectors)}


def _drawn(split: Split, seed: int) -> Classes:
    """Positions of held-out rows, ascending: all, or as many as `COMPARED` and `ASKED` allow."""
    most = max(ASKED, COMPARED // max(len(split.train), 1))
    if len(split.held_out) <= most:
        return split.held_out
    return np.sort(np.random.default_rng(seed).choice(split.held_out, most, replace=False))


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
    epochs = "epoch" if recipe.epochs == 1 else "epochs"
    steps = (
        f"{recipe.epochs:g} {epochs}, {recipe.batch_size} rows a step, learning rates {recipe.learning_rate:g} "
        f"(encoder) and {recipe.head_learning_rate:g} (class weights)"
    )
    return ", ".join([*shape, steps, *back])
