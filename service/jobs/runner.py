"""Jobs: training, indexing and recalibration in processes of their own, one after another, beside a service.

DIR/.lock                 held by the one service that runs these jobs
DIR/<id>/                 one job: its notes, and `out`, the model or collection it makes, see `service.jobs.folder`

A job survives its service: one that was interrupted, by a stop or by a kill, is continued at the next start, from its
last checkpoint where it has one; one that had finished and could not be noted any more has succeeded.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from index.data.confined import BELOW
from index.encoders.files import training_settings
from index.errors import DataError, EncoderError, ReadOnly, SettingsError, SurematchError
from index.storage.folder import CONFIG
from index.storage.snapshot import replace_durably, storing
from service.jobs import folder as job_folder
from service.schemas.jobs import IndexJob, IndexSettings, Ready, RecalibrateJob, Start, TrainJob, TrainSettings

QUEUE = 100
"""Jobs that may wait."""
AGAIN = 5.0
"""Seconds after which a job is tried again that could not be run."""
GRACE = 20.0
"""Seconds between being asked to stop and being killed."""
ENDED = ("succeeded", "failed", "cancelled")
log = logging.getLogger("surematch.service")


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands, see `service.schemas.jobs.JobReply`."""

    id: str
    kind: str
    settings: dict[str, Any]
    created: str
    state: str = "queued"
    started: str | None = None
    ended: str | None = None
    attempts: int = 0
    progress: dict[str, Any] | None = None
    error: str | None = None
    result: str | None = None
    promoted: bool = False
    source: str | None = field(default=None)

    def told(self) -> dict[str, Any]:
        """Without what is the service's own affair."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


class Jobs:
    """The jobs below `folder`. Use it from one event loop, between `start` and `stop`."""

    def __init__(self, folder: Path, memory: int) -> None:
        """Raises `SettingsError` when the folder cannot be used, lies in a collection, or has another service."""
        self.folder = folder.resolve()
        if any((part / CONFIG).is_file() for part in (self.folder, *self.folder.parents)):
            raise SettingsError(f"--jobs {folder}: lies in a collection, which may be replaced. Name another folder.")
        self.memory = memory
        self._jobs: dict[str, Job] = {}
        self._changed = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._running: str | None = None
        self._cancelled: set[str] = set()
        self.results = asyncio.Lock()
        """Held by who relies on the result of a job that has ended, or takes it away."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"--jobs {folder}: another service runs the jobs there. Name another one.") from error
        except OSError as error:
            raise SettingsError(f"--jobs {folder}: cannot be used ({error.strerror}). Name another one.") from error

    async def start(self) -> None:
        """Continues what was interrupted."""
        for path in sorted(self.folder.glob("*/job.json")):
            try:
                job = Job(**json.loads(path.read_bytes()))
            except (OSError, ValueError, TypeError) as error:
                log.error("a job cannot be read and is left alone: %s", error)
                continue
            if job.state not in ENDED:
                job = replace(job, state="queued" if job.state == "queued" else "interrupted")
            self._jobs[job.id] = job
        self._jobs = dict(sorted(self._jobs.items(), key=lambda entry: entry[1].created))
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Interrupts what runs; it is continued at the next start."""
        self._worker.cancel()
        with suppress(asyncio.CancelledError):
            await self._worker
        if self._process is not None:
            await self._end(self._process)
            if self._running is not None:
                try:
                    await self._put(replace(self._jobs[self._running], state="interrupted"))
                except SurematchError as error:  # the next start takes it for interrupted, too
                    log.error("that a job was interrupted cannot be noted: %s", error)
        async with self._changed:
            self._changed.notify_all()
        os.close(self._lock)

    def all(self) -> list[Job]:
        """Oldest first."""
        return [self._now(job) for job in sorted(self._jobs.values(), key=lambda job: job.created)]

    def get(self, id: str) -> Job | None:
        job = self._jobs.get(id)
        return None if job is None else self._now(job)

    def log(self, job: Job) -> bytes:
        """The end of what its process said."""
        return job_folder.said(self.folder / job.id)

    async def add(self, id: str, asked: TrainJob | IndexJob | RecalibrateJob, source: Path | None) -> Job:
        """Queues a job under a `new_id`; `source` is the collection that a recalibration copies. Raises `DataError` for
        a path that leaves the folder or does not exist, `DiskFull`."""
        job = Job(id, asked.kind, asked.settings.model_dump(), _now(), source=None if source is None else str(source))
        self._commands(job)  # raises for paths that are wrong
        with storing(self.folder, "job"):
            (self.folder / id).mkdir()
        try:
            await self._put(job)
        except SurematchError:
            shutil.rmtree(self.folder / id, ignore_errors=True)
            raise
        return job

    def waiting(self) -> int:
        return sum(job.state == "queued" for job in self._jobs.values())

    async def cancel(self, job: Job) -> Job:
        """Stops a job that has not ended; nothing of its result stays."""
        if job.id == self._running:
            self._cancelled.add(job.id)
            if self._process is not None:  # else it is about to start, and is ended as it does
                await self._end(self._process)
            async with self._changed:
                await self._changed.wait_for(lambda: self._state(job.id) in (*ENDED, None))
        else:
            await self._put(replace(job, state="cancelled", ended=_now()))
        async with self.results:
            await asyncio.to_thread(job_folder.clear, self.folder / job.id)
        return self._now(self._jobs.get(job.id, replace(job, state="cancelled", ended=_now())))

    async def remove(self, job: Job) -> Job:
        """Takes a job that has ended off the list and its folder off the disk; hold `results`. Raises `ReadOnly`, and
        the job stays on the list, where its folder cannot be removed."""
        folder = self.folder / job.id
        try:
            await asyncio.to_thread(job_folder.remove, folder)
        except OSError as error:
            raise ReadOnly(
                f"{folder}: what the job left could not be removed ({error.strerror}). Let the service write there and "
                "delete the job again."
            ) from error
        del self._jobs[job.id]
        self._cancelled.discard(job.id)
        async with self._changed:
            self._changed.notify_all()
        return job

    def needed_by(self, id: str) -> str | None:
        """A job that has not ended and takes what this one made."""
        made = self.folder / id
        for job in self._jobs.values():
            if job.state not in ENDED and job.id != id:
                paths = [job.source or "", *_texts(job.settings)]
                if any((self.folder / path).resolve().is_relative_to(made) for path in paths if "\0" not in path):
                    return job.id
        return None

    async def promoted(self, job: Job) -> Job:
        """Notes that its result is in service."""
        await self._put(replace(job, promoted=True))
        return self._jobs[job.id]

    async def change(self, id: str, seconds: float) -> Job | None:
        """The job after its next change of state, or after so many seconds; None once it is removed."""
        state = self._state(id)
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait_for(lambda: self._state(id) != state)
        return self.get(id)

    async def _work(self) -> None:
        while True:
            waiting = [job for job in self._jobs.values() if job.state in ("queued", "interrupted")]
            if waiting:
                await self._try(waiting[0])
                continue
            async with self._changed:
                await self._changed.wait()

    async def _try(self, job: Job) -> None:
        """Runs a job; where that fails for want of room or of files, it is taken up again after a while."""
        self._running = job.id
        try:
            await self._run(job)
        except Exception as error:  # an end of this task would be seen by nobody, and no job run any more
            log.error("a job cannot be run or its end not noted, and is tried again: %s", error)
            state = "cancelled" if job.id in self._cancelled else "interrupted"
            if job.id in self._jobs:
                self._jobs[job.id] = replace(self._jobs[job.id], state=state, error=str(error))
            self._process = self._running = None
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(AGAIN)
        else:
            self._running = None

    async def _run(self, job: Job) -> None:
        folder = self.folder / job.id
        if job.attempts and job_folder.finished(folder, copies=job.kind == "recalibrate"):
            await self._put(self._succeeded(self._now(job)))
            return
        job = replace(job, state="running", started=job.started or _now(), attempts=job.attempts + 1, error=None)
        try:
            commands = self._commands(job)
        except DataError as error:
            await asyncio.to_thread(job_folder.clear, folder, keep_run=True)
            await self._put(replace(job, state="failed", ended=_now(), error=str(error)))
            return
        await self._put(job)
        if job.id in self._cancelled:
            await self._put(replace(job, state="cancelled", ended=_now()))
            return
        environment = os.environ | {
            "SUREMATCH_PROGRESS": str(folder / "progress.json"),
            "HF_HUB_OFFLINE": "1",
            BELOW: str(self.folder),
        }
        words = [str(self.memory), json.dumps(commands), str(os.getpid())]
        with (folder / "log.txt").open("ab") as said, (folder / "result.json").open("wb") as answered:
            # from the event loop's own thread: the process is told to end when the thread that made it does
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # else Python would import what lies in the job's folder in the place of modules
                "-m",
                "service.job_process",
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=answered,
                stderr=said,
                env=environment,
                start_new_session=True,
                cwd=folder,
            )
            if job.id in self._cancelled:
                await self._end(self._process)
            code = await self._process.wait()
        if code != 0:  # before it is noted that the job has ended, so that no kill leaves it there
            await asyncio.to_thread(job_folder.clear, folder, keep_run=True)
        self._process = None
        await self._put(self._finished(self._now(self._jobs[job.id]), code))

    def _finished(self, job: Job, code: int) -> Job:
        if job.id in self._cancelled:
            return replace(job, state="cancelled", ended=_now())
        if code == 0 and (self.folder / job.id / "out").is_dir():
            return self._succeeded(job)
        said = self.log(job).decode(errors="replace").strip()[-2000:]
        return replace(job, state="failed", ended=_now(), error=said or f"The process ended with {code}.")

    def _succeeded(self, job: Job) -> Job:
        return replace(job, state="succeeded", ended=_now(), error=None, result=f"{job.id}/out")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(GRACE):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _put(self, job: Job) -> None:
        with storing(self.folder, "job"):
            replace_durably(self.folder / job.id / "job.json", json.dumps(asdict(job), allow_nan=False).encode())
        self._jobs[job.id] = job
        async with self._changed:
            self._changed.notify_all()

    def _state(self, id: str) -> str | None:
        job = self._jobs.get(id)
        return None if job is None else job.state

    def _now(self, job: Job) -> Job:
        """With its progress, which its process writes."""
        told = job_folder.progress(self.folder / job.id)
        return job if told is None else replace(job, progress=told)

    def _commands(self, job: Job) -> list[list[str]]:
        """Words for `surematch`. Flags carry their value in one word, so that no value is taken for a flag."""
        return {"train": self._train, "index": self._index, "recalibrate": self._recalibrate}[job.kind](job)

    def _train(self, job: Job) -> list[list[str]]:
        asked, out = job.settings, self.folder / job.id / "out"
        flags = [*_flags(asked, _TRAIN), f"--encoder={self._encoder(asked['encoder'], 'encoder', get_args(Start))}"]
        again = ["--resume"] if list(out.parent.glob("out.run/checkpoints/checkpoint-*/objective.safetensors")) else []
        return [["train", *self._inside(asked["data"], "data"), *flags, f"--out={out}", "--json", *again]]

    def _index(self, job: Job) -> list[list[str]]:
        asked, out = job.settings, self.folder / job.id / "out"
        flags, model = _flags(asked, _INDEX), self._encoder(asked["model"], "model", get_args(Ready))
        if asked["label"] is None and not _remembers_label(out.parent / model):
            flags.append("--label=label")
        for name in ("calibrate", "unknown"):
            flags += [f"--{name}={file}" for file in self._inside(asked[name], name)]
        return [["index", model, *self._inside(asked["data"], "data"), *flags, f"--out={out}", "--json", "--resume"]]

    def _recalibrate(self, job: Job) -> list[list[str]]:
        out = self.folder / job.id / "out"
        shutil.rmtree(out, ignore_errors=True)  # of an attempt that was interrupted
        return [["backup", str(job.source), str(out)], ["recalibrate", str(out), "--json"]]

    def _encoder(self, asked: str, name: str, known: Sequence[str]) -> str:
        """A name of `known`, or a model below the folder. Raises `DataError`."""
        return asked if asked in known else self._inside([asked], name)[0]

    def _inside(self, paths: list[str], name: str) -> list[str]:
        """The files and folders, absolute. Raises `DataError` for one not below the folder, wherever links lead.

        Pictures that they name or hold are checked as they are opened, see `index.data.confined`.
        """
        found = []
        for at, path in enumerate(paths):
            whole = (self.folder / path).resolve() if "\0" not in path else self.folder
            if not whole.is_relative_to(self.folder) or whole == self.folder or not _readable(whole):
                raise DataError(f"/settings/{name}/{at}: there is no such file below the folder of --jobs.")
            found.append(str(whole))
        return found


_TRAIN = [name for name in TrainSettings.model_fields if name not in ("data", "encoder")]
_INDEX = [name for name in IndexSettings.model_fields if name not in ("model", "data", "calibrate", "unknown")]
"""What is a flag of the same name; the rest are paths."""


def _flags(asked: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Those of `names` that were asked for; one that is off, or that an older service did not know, is left away."""
    flags = {f"--{name.replace('_', '-')}": asked.get(name) for name in names}
    return [flag if value is True else f"{flag}={value}" for flag, value in flags.items() if value not in (None, False)]


def _remembers_label(encoder: Path) -> bool:
    """Whether training named the label's column. A record that cannot be read is for the job itself to refuse."""
    try:
        return bool(training_settings(encoder).get("label"))
    except EncoderError:
        return True


def new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(4)}"


def _readable(path: Path) -> bool:
    """A file or a folder; no pipe, for reading it would wait for who writes into it."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:  # a name longer than names can be
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _texts(value: Any) -> Iterator[str]:
    """The texts in settings, some of which are paths."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
