"""A model folder appears whole or not at all: written in its run folder, then renamed into its place."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from index.encoders.files import RECORD
from index.errors import SettingsError

FORMAT = "surematch model 1"
ENCODER = "encoder"
"""Where in a run folder the encoder is written."""
EVALUATION, REPORT = "evaluation.json", "report.html"
"""Everything that was measured, and the page that shows it."""
log = logging.getLogger("surematch.training")


def check_target(out: Path, overwrite: bool) -> None:
    """Raises `SettingsError` unless `out` is free for a model, or holds one of ours that may be replaced."""
    if not os.path.lexists(out):
        above = next(folder for folder in out.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise SettingsError(
                f"{out} cannot be created: {above} is no folder that can be written to. Name another with --out."
            )
        return
    if not overwrite:
        raise SettingsError(f"{out} exists already. Name another folder with --out, or replace it with --overwrite.")
    if not _is_model(out):
        raise SettingsError(
            f"{out} is not a folder that `surematch train` wrote, so --overwrite will not delete it. "
            "Name another folder with --out, or remove this one yourself."
        )


@contextmanager
def new_folder(out: Path, overwrite: bool, work: Path) -> Iterator[Path]:
    """A folder in `work`, this process's alone, that takes the place of `out` when the block ends well, and is removed
    when it does not; what a killed process left there goes.

    A model already at `out` stays until the new one is complete. Raises `SettingsError` where `out` is not free any
    more, which says where the finished folder is then: what took hours is not thrown away.
    """
    temporary = work / ENCODER
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
    except OSError as error:
        raise SettingsError(f"{temporary}: {error.strerror or error}. Remove it, or name another --out.") from error
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        _take_place(temporary, out, overwrite)
    except OSError as error:
        kept = out.with_name(f"{out.name}.finished-{uuid4().hex[:8]}")
        try:
            temporary.rename(kept)
        except OSError:  # then the run folder stays with it
            kept = temporary
        raise SettingsError(
            f"{out}: {error.strerror or error}, so it is left as it is. The trained encoder is whole, in {kept}. "
            f"Give it another name: mv {shlex.quote(str(kept))} NAME"
        ) from error


def _take_place(finished: Path, out: Path, overwrite: bool) -> None:
    """Raises `OSError` where `out` is not free, or holds what `overwrite` does not cover."""
    if not os.path.lexists(out):
        finished.rename(out)
        return
    if not overwrite:
        raise FileExistsError("came to be while this trained")
    if not _is_model(out):
        raise FileExistsError("is no folder that `surematch train` wrote any more")
    retired = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    out.rename(retired / out.name)
    try:
        finished.rename(out)
    except BaseException:
        (retired / out.name).rename(out)
        raise
    shutil.rmtree(retired, ignore_errors=True)
    if retired.exists():
        log.warning("The model that %s replaces cannot be removed whole. What is left of it lies in %s.", out, retired)


def read_record(folder: Path) -> dict[str, Any] | None:
    """`training.json` of a model folder, None where there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _is_model(folder: Path) -> bool:
    record = read_record(folder)
    return record is not None and record.get("format") == FORMAT
