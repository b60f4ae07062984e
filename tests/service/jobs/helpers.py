"""What the tests of jobs share: data and encoders to write, and waiting for a job."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from index.collection import Collection
from index.encoders.image_network import ImageNetwork
from service.client import Client
from service.schemas.jobs import JobReply

INDEX = {
    "model": "encoder",
    "data": ["data/items.csv"],
    "calibrate": ["data/known.csv"],
    "unknown": ["data/unknown.csv"],
}


def write(path: Path, rows: Sequence[tuple[str, str | None]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, label or "") for text, label in rows)])


def write_image_encoder(path: Path) -> None:
    network = ImageNetwork(size=16, width=8, dimension=8)
    SentenceTransformer(modules=[network], device="cpu").save_pretrained(str(path), create_model_card=False)


def until(api: Client, id: str, done: Callable[[JobReply], bool], seconds: float = 240) -> JobReply:
    """Jobs run at low priority: beside other tests they may get a tenth of a core."""
    deadline = time.monotonic() + seconds
    while not done(job := api.job(id)):
        assert job.state in ("queued", "running", "interrupted"), f"{job}\n{api._http.get(f'/v1/jobs/{id}/log').text}"
        assert time.monotonic() < deadline, f"{job}\n{api._http.get(f'/v1/jobs/{id}/log').text}"
        time.sleep(0.05)
    return job


def ended(job: JobReply) -> bool:
    return job.state in ("succeeded", "failed", "cancelled")


@contextlib.contextmanager
def written(collection: Path) -> Iterator[Collection]:
    opened = Collection.open(collection, writable=True)
    try:
        yield opened
    finally:
        opened.close()
