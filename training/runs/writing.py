"""What a training leaves: the folder of the encoder, its class weights and the keys of its rows, safely on disk."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from index.data.rows import Row
from index.encoders.files import TRAINED_ROWS
from training.data.rows import trained_row_keys
from training.objectives import Objective
from training.parts.heads import save_head
from training.parts.projection import Frozen

_PACKAGES = ("surematch", "torch", "sentence-transformers", "transformers", "tokenizers", "numpy")


def write_encoder(
    folder: Path,
    model: SentenceTransformer,
    frozen: Frozen | None,
    loss: torch.nn.Module,
    labels: Sequence[str],
    trained: Sequence[Row],
    means: Tensor | None = None,
) -> None:
    """Writes encoder, class weights and the keys of the rows it was `trained` on to the empty `folder`.

    `means` (C, d) of the classes take the place of weights behind a layer that is not kept.
    """
    if frozen is None:
        model.save_pretrained(str(folder), create_model_card=False)
    else:
        frozen.write(model, folder)
    if isinstance(loss, Objective) and means is not None:
        save_head(folder, means, labels)
    elif isinstance(loss, Objective):
        kept = loss.class_weights()[: len(labels) * loss.centers]  # not those of `training.data.more_classes`
        save_head(folder, kept, [label for label in labels for _ in range(loss.centers)])
    np.save(folder / TRAINED_ROWS, trained_row_keys(trained), allow_pickle=False)


def settle(folder: Path) -> None:
    """Makes every file as readable as `folder` is, and sure to be on the disk."""
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)  # weights are saved as 0600, whatever the umask allows
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def config_of(loss: torch.nn.Module) -> dict[str, Any]:
    """What a loss says of itself, as far as JSON can say it."""
    describe: Any = getattr(loss, "get_config_dict", dict)
    content: dict[str, Any] = describe()
    return {name: value for name, value in content.items() if isinstance(value, str | int | float | bool)}


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the weights."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "not installed"
