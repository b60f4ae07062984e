"""An encoder in training: as it starts, what it is given for each row, and its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from index.data.rows import Row
from index.encoders.files import modality_of, open_sentence_transformer
from training.config import Kind, TrainSettings
from training.data.pictures import PictureCollator, canvases, new_image_model
from training.measures.retrieval import Classes, Vectors
from training.parts.projection import Frozen, VectorCollator, projected
from training.parts.static import is_static


@dataclass(frozen=True, slots=True)
class Learner:
    """What is trained, of which kind, and the ready-made encoder before it, where that is a projection."""

    model: SentenceTransformer
    kind: Kind
    frozen: Frozen | None = None

    @classmethod
    def start(cls, settings: TrainSettings, rows: Sequence[Row], frozen: Frozen | None, resume: Path | None) -> Learner:
        """As `settings` say, for `rows`; to go on from the checkpoint `resume` where there is one."""
        if frozen is not None:
            return cls(frozen.model(), "frozen", frozen)
        if modality_of(settings.encoder) == "text":
            model = open_sentence_transformer(settings.encoder)
            return cls(model, "static" if is_static(model) else "transformer")
        if Path(settings.encoder).is_dir():
            return cls(open_sentence_transformer(settings.encoder), "image")
        return cls(new_image_model(settings, rows, resume), "image")

    @property
    def dimension(self) -> int:
        return int(self.model.get_embedding_dimension() or 0)

    def contents(self, rows: Sequence[Row]) -> list[Any]:
        """What is given for each row: its text, its picture at the network's size, or a frozen encoder's vector."""
        if self.frozen is not None:
            return list(self.frozen.vectors(rows))
        return canvases(self.model, rows) if self.kind == "image" else [row.text for row in rows]

    def encode(self, contents: Sequence[Any]) -> Vectors:
        """Unit vectors (n, d)."""
        if self.kind == "frozen":
            return projected(self.model, contents)
        vectors = self.model.encode(list(contents), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32).reshape(len(contents), -1)

    def collator(self, contents: Sequence[Any], classes: Classes, settings: TrainSettings) -> Any:
        """What makes batches of pictures or vectors; None: the library's own, of texts."""
        if self.kind == "frozen":
            return VectorCollator(contents)
        return PictureCollator(self.model, contents, classes, settings) if self.kind == "image" else None
