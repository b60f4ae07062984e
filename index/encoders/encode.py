"""Encoding many rows: in this process, or by several, always in order and a few batches ahead, never all at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from index.data.picture import Picture
from index.data.rows import Row
from index.encoders.by_name import load_encoder
from index.encoders.encoder import Encoder
from index.encoders.image_encoder import image_encoder
from index.encoders.pictures import picture_of, place_of
from index.errors import DataError, WorkerError

BATCH = 1024
_PER_WORKER = 8 * BATCH
"""Rows that repay starting a process."""
_AHEAD = 3
"""Batches a worker may have waiting."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Vectors = NDArray[np.float32]
Contents = list[str] | list[Picture]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows with their vectors (n, d), and the positions of texts longer than the encoder reads."""

    rows: list[Row]
    vectors: Vectors
    too_long: list[int]


def workers_for(count: int, wanted: int | None) -> int:
    """Processes to encode `count` rows with: as wanted, else one a core as far as the rows repay them."""
    return wanted or max(1, min(len(os.sched_getaffinity(0)), count // _PER_WORKER))


def encode_stream(
    encoder: Encoder, folder: Path, rows: Iterable[Row], workers: int = 1
) -> Generator[Encoded, None, None]:
    """`rows` in order, batch by batch, encoded by `encoder`, or by `workers` processes that load it from `folder`.

    The processes are spawned: a script that asks for several needs the guard `if __name__ == "__main__":`.
    Raises `DataError` naming the file and line of a text that encodes to nothing, `WorkerError` when a process dies.
    """
    if workers == 1:
        for batch in _batches(rows):
            try:
                vectors, too_long = _encode(encoder, _contents(encoder, batch))
            except DataError:
                blame(encoder, batch)
                raise
            yield Encoded(batch, vectors, too_long)
        return
    context = multiprocessing.get_context("spawn")
    with _single_threaded(), ProcessPoolExecutor(workers, context, _start, (folder,)) as pool:
        waiting: deque[tuple[list[Row], Future[tuple[Vectors, list[int]]]]] = deque()
        try:
            for batch in _batches(rows):
                waiting.append((batch, pool.submit(_work, _contents(encoder, batch))))
                if len(waiting) > _AHEAD * workers:
                    yield _collect(encoder, *waiting.popleft())
            while waiting:
                yield _collect(encoder, *waiting.popleft())
        except BrokenProcessPool as error:
            raise WorkerError(
                "An encoding process died; the usual reason is too little memory. What is encoded is kept: run the "
                "same command with --resume and fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def blame(encoder: Encoder, rows: Sequence[Row]) -> None:
    """Raises the `DataError` of the one row in a refused batch, with its file and line."""
    for row in rows:
        try:
            encode_batch(encoder, [row])
        except DataError as error:
            if row.image is None:
                raise DataError(f"{row.file}: line {row.line}: {error}") from error
            fault = str(error).removeprefix(f"{row.image}: ")
            raise DataError(f"{place_of(row)}: {fault} Or leave such pictures out with --skip-faulty.") from error


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while batch := list(islice(left, BATCH)):
        yield batch


def encode_batch(encoder: Encoder, rows: Sequence[Row]) -> Vectors:
    """The vectors (n, d) of rows of texts or pictures. Raises `DataError`."""
    return _encode(encoder, _contents(encoder, rows))[0]


def _contents(encoder: Encoder, rows: Sequence[Row]) -> Contents:
    """What the encoder takes of each row."""
    return [picture_of(row) for row in rows] if encoder.modality == "image" else [row.text for row in rows]


def _encode(encoder: Encoder, contents: Contents) -> tuple[Vectors, list[int]]:
    if encoder.modality == "image":
        return image_encoder(encoder).encode_images(cast(list[Picture], contents)), []
    texts = cast(list[str], contents)
    return encoder.encode(texts), encoder.too_long(texts)


def _collect(encoder: Encoder, rows: list[Row], done: Future[tuple[Vectors, list[int]]]) -> Encoded:
    try:
        vectors, too_long = done.result()
    except DataError:
        blame(encoder, rows)
        raise
    return Encoded(rows, vectors, too_long)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread a process: libraries read these variables as they load, so the parent sets them for its children."""
    wanted = {**dict.fromkeys(_THREADS, "1"), "TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_encoder: Encoder | None = None
"""This worker's own."""


def _start(folder: Path) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_follow_parent, daemon=True).start()
    _encoder = load_encoder(folder)


def _follow_parent() -> None:
    """A parent killed with -9 cannot stop its workers, and a pool's pipes stay open among them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(contents: Contents) -> tuple[Vectors, list[int]]:
    assert _encoder is not None, "the pool starts every worker with _start"
    return _encode(_encoder, contents)
