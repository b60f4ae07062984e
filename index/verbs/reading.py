"""What the verbs read, texts or pictures alike, and the pictures that `--skip-faulty` leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from index.calibration.sources import Progress
from index.data.rows import Row, RowFiles
from index.encoders.encoder import Encoder
from index.encoders.files import Modality, modality_of, training_settings
from index.encoders.pictures import cannot_be_used, read_content, sound_ones
from index.errors import DataError, SettingsError
from index.verbs.terminal import Terminal
from index.verbs.usable import left_out, summary, usable

SKIP = Field(
    False,
    description="leave out pictures that cannot be used (broken files; for face encoders those without exactly one "
    "main face) and list them",
)


class Reader:
    """Reads the data of one verb, and with `skip` gathers the pictures that cannot be used, which are errors else."""

    def __init__(self, modality: Modality, *, text: str, label: str | None, skip: bool) -> None:
        """Columns as in `index.data.rows.read_rows`. Raises `SettingsError` for texts that should be skipped."""
        if skip and modality == "text":
            raise SettingsError("--skip-faulty: leaves out pictures only. Repair or delete the rows that are named.")
        self.skips = skip
        self._modality, self._text, self._label = modality, text, label
        self._faulty: list[Row] = []

    def read(self, paths: Sequence[Path], *, require_label: bool = True) -> list[Row]:
        """All rows of `paths`, none for no path. Raises `DataError`, also where no picture is left."""
        if not paths:
            return []
        faulty: list[Row] | None = [] if self.skips else None
        columns: dict[str, Any] = {"text": self._text, "label": self._label, "require_label": require_label}
        rows = read_content(self._modality, paths, **columns, faulty=faulty)
        return self._without(faulty or [], rows)

    def look(self, rows: Iterable[Row]) -> list[Row]:
        """The rows whose pictures can be decoded, with their digests. Raises `DataError` as `read` does."""
        faulty: list[Row] | None = [] if self.skips else None
        kept = sound_ones(rows, faulty)
        return self._without(faulty or [], kept)

    def stream(self, paths: Sequence[Path]) -> Iterable[Row]:
        """As `read`, but texts are read anew on every iteration and never held in memory together."""
        return RowFiles(paths, text=self._text, label=self._label) if self._modality == "text" else self.read(paths)

    def usable(self, encoder: Encoder, rows: Iterable[Row], progress: Progress) -> list[Row]:
        """The rows that `encoder` takes, see `index.verbs.usable`. Raises `DataError` where none is left."""
        faulty: list[Row] = []
        return self._without(faulty, usable(encoder, list(rows), faulty, progress))

    def _without(self, faulty: list[Row], rows: list[Row]) -> list[Row]:
        self._faulty += faulty
        if faulty and not rows:
            raise DataError(f"No picture is left: {cannot_be_used(faulty)}. Give at least one that can be.")
        return rows

    def as_json(self) -> dict[str, Any]:
        """What the JSON of a verb says of pictures left out; nothing where none was to be."""
        return {"left_out": left_out(self._faulty)} if self.skips else {}

    def tell(self) -> None:
        """Lists the pictures left out on stderr, all of them, one a line."""
        if self._faulty:
            Terminal(stderr=True).print(summary(self._faulty))


def check_columns(modality: Modality, paths: Sequence[Path], text: str, label: str | None) -> None:
    """Raises `SettingsError` for columns that were asked for where there are none: pictures lie in folders alone."""
    if modality != "image" or not all(map(folders_are_labels, paths)):
        return
    given = [f"--{name} {value}" for name, value in (("text", text), ("label", label)) if value not in (None, "", name)]
    if given:
        raise SettingsError(
            f"{' and '.join(given)}: a column of a table, but these pictures lie in folders, which name their labels. "
            "Leave it away."
        )


def folders_are_labels(path: Path) -> bool:
    """Whether the pictures there lie in folders that name their identities."""
    return path.is_dir() or path.suffix.lower() == ".zip"


def indexed_label(config: dict[str, Any], encoder: Path, data: Path, otherwise: str = "") -> str:
    """The label column that the collection of this `config` was indexed with; an earlier version kept that of the
    training alone. Raises `SettingsError` as `trained_label` does."""
    column = config.get("label")
    return str(column) if column else trained_label(encoder, data, otherwise)


def trained_label(encoder: Path, data: Path, otherwise: str = "") -> str:
    """The label column named at training, so that it is typed once.

    Raises `SettingsError` where there is none and the files of `data` carry no labels themselves, with what there is to
    do `otherwise`.
    """
    column = training_settings(encoder).get("label")
    if not column and modality_of(str(encoder)) == "image" and folders_are_labels(data):
        return "label"  # folders name their identities themselves
    if not column:
        raise SettingsError(f"--label: name the column of {data} that holds the label.{otherwise}")
    return str(column)
