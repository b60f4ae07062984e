"""What the data have to train with: rows read and checked, classes set aside, rows held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Console

from index.data.rows import Row
from index.encoders.files import modality_of
from index.encoders.pictures import read_content
from index.errors import SettingsError
from index.verbs.terminal import styled
from training.config import TrainSettings
from training.data.pairs import rows_of_pairs
from training.data.review import Fault, review, summary
from training.data.rows import Split, check_classes, choose_unseen, label_of, split_rows
from training.measures.retrieval import Classes
from training.parts.projection import Frozen, is_frozen


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows of the classes that train, those of classes never seen, and how the former are split."""

    rows: list[Row]
    labels: list[str]
    classes: Classes
    split: Split
    unseen: list[Row]
    faults: list[Fault]
    frozen: Frozen | None

    @property
    def everything(self) -> list[Row]:
        return [*self.rows, *self.unseen]


def prepare(settings: TrainSettings, console: Console) -> Prepared:
    frozen = Frozen(settings.encoder) if is_frozen(settings.encoder) else None
    everything, faults = _read(settings, frozen)
    for line in summary(faults):
        console.print(styled("Report:", "yellow"), line)
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
    return Prepared(rows, labels, classes, split, unseen, faults, frozen)


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
