"""The run folder beside `--out`: checkpoints of a training that is not done yet, and what it was started with.

`OUT.run/run.json` holds the settings, the fingerprints of the data and of the encoder, and how rows are held out; a
resume with others is refused, because it would continue something else. It is one process's at a time
(`training.runs.lock`). The folder goes when training is done, or was stopped before the first checkpoint; an encoder
that is trained and cannot be moved to its place stays in it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from index.encoders.by_name import encoder_folder
from index.encoders.files import fingerprint
from index.errors import SettingsError
from index.verbs.settings import Settings
from training.config import TrainSettings
from training.runs.folder import ENCODER, check_target, read_record
from training.runs.lock import LOCK, RunLock, check_alone

RECORD = "run.json"
CONFIG = "training.toml"
START = "encoder_fingerprint"
WHOLE = "checkpoint-*/objective.safetensors"
_ESCAPED_IN_TOML = re.compile(r"[\x7f\ud800-\udfff]")
"""What JSON leaves as it is and TOML or UTF-8 does not take. Half a character, of a path that is no Unicode, cannot be
read back: nothing in TOML can say it."""


class Run:
    """One training on its way to `out`. `identity` is everything that decides the weights, by name."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.folder = _folder(out)
        self.checkpoints = self.folder / "checkpoints"
        self.finished = False
        self._out = out
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))

    @contextmanager
    def begun(self, *, resume: bool, overwrite: bool) -> Iterator[Path | None]:
        """The run folder, made or re-entered, is this process's alone for the block; the checkpoint to continue from,
        None to start.

        Raises `SettingsError`: nothing to resume, a resume of something else, an interrupted run in the way, or another
        process that trains into the same place.
        """
        self._check_folder(resume)
        lock = RunLock(self.folder, self._out)
        try:
            check_target(self._out, overwrite)  # another training may have ended while the rows were read
            checkpoint = self._again() if resume else None
            if checkpoint is None:
                self._begin_afresh(overwrite)
            yield checkpoint
        finally:
            if (self.finished or _last(self.checkpoints) is None) and not (self.folder / ENCODER).exists():
                self._remove()
            lock.release()

    def _check_folder(self, resume: bool) -> None:
        """Raises `SettingsError` for a folder that is not to be entered, before anything is written to it."""
        if resume:
            self._checkpoint()
        elif self.folder.exists() and not (self.folder.is_dir() and self._is_ours()):
            raise SettingsError(f"{self.folder} is in the way and not a run of ours. Move it, or use another --out.")

    def _is_ours(self) -> bool:
        """Whether it has a record, or nothing yet: its process may be about to write that, or have been killed."""
        return (self.folder / RECORD).is_file() or {path.name for path in self.folder.iterdir()} <= {LOCK}

    def _again(self) -> Path:
        checkpoint = self._checkpoint()
        self._check_same()
        return checkpoint

    def _checkpoint(self) -> Path:
        checkpoint = _last(self.checkpoints)
        if checkpoint is None:
            raise SettingsError(
                f"There is no interrupted run of {self._out} to continue ({self.folder} holds no checkpoint). "
                "Leave --resume out to start one."
            )
        return checkpoint

    def _begin_afresh(self, overwrite: bool) -> None:
        if read_record(self.folder / ENCODER) is not None and not overwrite:
            raise SettingsError(
                f"{self.folder / ENCODER} is a trained encoder that did not come to its place. Move it, or drop it "
                "with --overwrite."
            )
        if _last(self.checkpoints) is not None and not overwrite:
            raise SettingsError(
                f"{self.folder} holds an interrupted run. Continue it with --resume, or drop it with --overwrite."
            )
        self._empty()
        (self.folder / RECORD).write_text(json.dumps(self._identity, indent=2), encoding="utf-8")
        self.checkpoints.mkdir()

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in (LOCK, RECORD):
                path.unlink()
        (self.folder / RECORD).unlink(missing_ok=True)  # last: by it the folder is known as ours

    def _remove(self) -> None:
        """The lock last; the folder stays where another training is about to enter it."""
        with suppress(OSError):
            self._empty()
            (self.folder / LOCK).unlink()
            self.folder.rmdir()

    def _check_same(self) -> None:
        before = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        for name in self._identity.keys() - before.keys():  # a setting that the version before did not have
            if name in TrainSettings.model_fields:
                before[name] = TrainSettings.model_fields[name].get_default(call_default_factory=True)
        names = sorted(before.keys() | self._identity.keys())
        differ = [name for name in names if before.get(name) != self._identity.get(name)]
        if differ:
            shown = "; ".join(f"{name} was {before.get(name)!r}, is {self._identity.get(name)!r}" for name in differ)
            raise SettingsError(
                f"The interrupted run in {self.folder} was started differently: {shown}. Continue with the same "
                "data, settings and version of surematch, or start afresh with --overwrite."
            )


def start_of(encoder: str) -> dict[str, str]:
    """What lies at a path that is trained on, for an identity: another encoder may lie there one day."""
    if not (Path(encoder).is_dir() or encoder.endswith(".onnx")):
        return {}
    with encoder_folder(encoder) as folder:
        return {START: fingerprint(folder)}


def check_place(out: Path, overwrite: bool) -> None:
    """Raises `SettingsError` unless a training into `out` may begin. Makes nothing there."""
    check_target(out, overwrite)
    check_alone(_folder(out), out)


def can_resume(out: Path) -> bool:
    """Whether an interrupted run of `out` left a checkpoint."""
    return _last(_folder(out) / "checkpoints") is not None


def write_config(settings: TrainSettings, folder: Path) -> None:
    """The settings that shape a training as TOML, for `surematch train DATA --out OUT --config training.toml`."""
    lines = [f"{name} = {_toml(value)}" for name, value in settings.shaping().items() if value not in (None, {})]
    (folder / CONFIG).write_text("\n".join(lines) + "\n", encoding="utf-8")


def command_of(verb: str, settings: Settings) -> str:
    """The shell command that does this again: the data, and every setting that is not its default."""
    words = ["surematch", verb]
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name in ("config", "json_", "resume", "overwrite") or value == field.default:
            continue
        flag = "--" + (field.alias or name).replace("_", "-")
        if name == "data":
            words += map(positional, value)
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [word for part in _parts(value) for word in given(flag, part)]
    return shlex.join(words)


def _parts(value: Any) -> list[str]:
    """What the flag is given for; a list or a table takes it once for each entry."""
    if isinstance(value, dict):
        return [f"{key}={part}" for key, part in value.items()]
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]


def positional(path: Path) -> str:
    """A path as a command takes it: one that begins with a dash would be taken for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def given(flag: str, value: str) -> list[str]:
    """A flag and its value, as one word or as two."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]  # else it is taken for a flag


def _toml(value: Any) -> str:
    """One value as TOML; numbers, booleans and most strings are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(name)} = {_toml(part)}" for name, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    written = json.dumps(value, ensure_ascii=False)  # else halves of characters, which TOML refuses
    return _ESCAPED_IN_TOML.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".run")


def _last(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint: one that was being written when the process died does not count."""
    whole = [path.parent for path in checkpoints.glob(WHOLE)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
