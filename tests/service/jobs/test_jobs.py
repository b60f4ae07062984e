"""Jobs over a socket, in real processes: run, watched, promoted."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import socket
from pathlib import Path

import httpx2
import pytest

from index.collection import Collection
from index.encoders.files import RECORD
from service.client import Calls, Client, ServiceProblem
from service.schemas.jobs import JobReply
from tests.pictures import write_digits
from tests.service.conftest import serving
from tests.service.gallery import GALLERY, KNOWN, UNKNOWN
from tests.service.jobs.helpers import INDEX, ended, until, write_image_encoder, written


def test_an_indexed_collection_is_served_once_it_is_promoted_unless_it_is_damaged(
    folder: Path, link: Path, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    with (
        serving(link, "--jobs", str(folder), "--audit-log", str(audit)) as server,
        Client(server.url, timeout=60) as api,
    ):
        before = api.collection()
        started = api.start_job("index", INDEX)
        assert started.state in ("queued", "running")
        events = []
        with httpx2.stream("GET", f"{server.url}/v1/jobs/{started.id}/events", timeout=60) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                if line:
                    assert line.startswith("data: ")
                    events.append(JobReply.model_validate_json(line.removeprefix("data: "), strict=True))
        job = api.job(started.id)
        assert events[-1] == job
        assert (job.state, job.error, job.attempts, job.result) == ("succeeded", None, 1, f"{job.id}/out")
        assert job.progress is not None
        assert {entry.state for entry in events} >= {"running", "succeeded"}
        assert api.collection().snapshot == before.snapshot, "nothing is served before it is promoted"
        target, weights = link.readlink(), folder / job.id / "out" / "encoder" / "model.safetensors"
        sound = weights.read_bytes()
        weights.write_bytes(b"x")
        with pytest.raises(ServiceProblem, match="refused and the old one serves on") as refused:
            api.promote_job(job.id)
        assert refused.value.status == 409
        assert (link.readlink(), api.collection().snapshot) == (target, before.snapshot)
        assert not api.job(job.id).promoted
        spare = until(api, api.start_job("index", INDEX).id, ended).id
        weights.write_bytes(sound)
        assert api.promote_job(job.id).promoted
        after = api.collection()
        assert after.snapshot != before.snapshot
        assert link.resolve() == folder / job.id / "out"
        answer = api.search([KNOWN[0][0]]).results[0]
        assert answer.decision is not None
        assert answer.decision.label == KNOWN[0][1]
        with pytest.raises(ServiceProblem, match="current is served from what this job made") as kept:
            api.delete_job(job.id)
        assert kept.value.status == 409
        assert api.promote_job(spare).promoted
        assert api.delete_job(job.id).promoted
        assert not (folder / job.id).exists()
        with pytest.raises(ServiceProblem, match="no job of this id"):
            api.job(job.id)
        link.unlink()
        link.symlink_to(target)  # by hand, and not reloaded: the other is still what answers
        with pytest.raises(ServiceProblem, match="is served from what this job made"):
            api.delete_job(spare)
        api.reload()
        assert api.delete_job(spare).id == spare
        assert api.search([KNOWN[0][0]]).results[0].decision is not None
    logged = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["event"], line.get("job")) for line in logged] == [
        ("job", job.id), ("promote", job.id), ("failed", None), ("job", spare), ("promote", job.id), ("search", None),
        ("promote", spare), ("remove", job.id), ("reload", None), ("remove", spare), ("search", None),
    ]  # fmt: skip
    assert (logged[0]["kind"], logged[0]["collection"]) == ("index", None)
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:
        assert api.collection().snapshot == before.snapshot
        assert api.send(Calls.jobs()).jobs == []


def test_feedback_recalibrates_a_copy_that_is_promoted_unless_writes_came_between(folder: Path, link: Path) -> None:
    texts: list[tuple[str, str | None]] = [*KNOWN, *((text, None) for text in UNKNOWN)]
    texts += [(f"{text} hall", label) for text, label in texts]
    with written(link) as opened:
        vectors = opened.encoder.encode([text for text, _ in texts])
        for vector, (_, label) in zip(vectors, texts, strict=True):
            opened.feedback(vector, label)
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:

        def refused(job: JobReply) -> None:
            assert job.state == "succeeded", job.error
            with pytest.raises(ServiceProblem, match="changed since it was copied"):
                api.promote_job(job.id)

        def recalibrated() -> JobReply:
            return until(api, api.start_job("recalibrate", {"collection": None}).id, ended)

        own = api.calibration().version
        first = recalibrated()
        with written(link) as opened:
            opened.feedback(vectors[0], texts[0][1])
        refused(first)
        second = recalibrated()
        with written(link) as opened:
            chosen = opened.recalibrate().id
        refused(second)
        third = recalibrated()
        with written(link) as opened:
            opened.use_calibration(str(own))
        refused(third)
        with written(link) as opened:
            opened.use_calibration(chosen)
            opened.delete(["rows.csv:2"])
        refused(third)
        last = recalibrated()
        assert api.promote_job(last.id).promoted
        assert api.calibration().version not in (own, None)
        assert api.collection().items == 81


def test_a_recalibration_is_promoted_to_the_collection_it_is_a_copy_of(
    folder: Path, link: Path, tmp_path: Path
) -> None:
    shutil.copytree(link.resolve(), tmp_path / "other")
    (tmp_path / "faq").symlink_to(tmp_path / "other")
    with written(tmp_path / "faq") as opened:
        for text, label in [*KNOWN, *((text, None) for text in UNKNOWN)]:
            for asked in (text, f"{text} hall"):
                opened.feedback(opened.encoder.encode([asked])[0], label)
    both = (f"shop={link}", f"faq={tmp_path / 'faq'}")
    with serving(Path(both[0]), both[1], "--jobs", str(folder)) as server, Client(server.url) as api:
        job = until(api, api.start_job("recalibrate", {"collection": "faq"}).id, ended)
        assert job.state == "succeeded", job.error
        with pytest.raises(ServiceProblem, match="recalibrated faq, not shop"):
            api.promote_job(job.id, "shop")
        assert api.promote_job(job.id).promoted
    assert (tmp_path / "faq").resolve().is_relative_to(folder)
    assert link.resolve() == tmp_path / "home"


def test_events_for_old_clients_come_without_chunks_and_end_with_the_connection(folder: Path, collection: Path) -> None:
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url) as api:
        id = api.start_job("index", INDEX).id
        with socket.create_connection(server.address, timeout=60) as connection:
            connection.sendall(f"GET /v1/jobs/{id}/events HTTP/1.0\r\n\r\n".encode())
            api.cancel_job(id)
            said = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    events = body.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: {") for event in events)
    assert json.loads(events[-1].removeprefix("data: "))["state"] == "cancelled"


def test_faulty_pictures_are_left_out_where_a_job_is_told_so(folder: Path, collection: Path) -> None:
    write_image_encoder(folder / "pictures")
    write_digits(folder / "people", range(2), range(3))
    (folder / "people" / "d0" / "torn.png").write_bytes(b"no picture")
    asked = {"model": "pictures", "data": ["people"]}
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        strict = until(api, api.start_job("index", asked).id, ended)
        lenient = until(api, api.start_job("index", {**asked, "skip_faulty": True}).id, ended)
        said = httpx2.get(f"{server.url}/v1/jobs/{lenient.id}/log").text
    assert strict.state == "failed"
    assert "torn.png" in (strict.error or "")
    assert lenient.state == "succeeded", lenient.error
    assert "torn.png" in said


def test_an_index_job_takes_the_label_column_of_the_training_unless_it_names_one(folder: Path, link: Path) -> None:
    rows = [("text", "intent", "room"), *((text, label, "hall") for text, label in GALLERY)]
    with (folder / "data" / "intents.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    (folder / "encoder" / RECORD).write_text(json.dumps({"settings": {"label": "intent"}}), encoding="utf-8")
    asked = {"model": "encoder", "data": ["data/intents.csv"]}
    with serving(link, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        remembered = until(api, api.start_job("index", asked).id, ended)
        named = until(api, api.start_job("index", {**asked, "label": "room"}).id, ended)
    for job, labels in ((remembered, {label for _, label in GALLERY}), (named, {"hall"})):
        assert job.result is not None, job.error
        with contextlib.closing(Collection.open(folder / job.result)) as made:
            assert set(made.state.gallery.names) == labels


@pytest.mark.skipif("SUREMATCH_TRAIN_JOB" not in os.environ, reason="training takes long: make test-jobs")
def test_an_encoder_of_pictures_is_trained_and_indexed(folder: Path, link: Path) -> None:
    write_digits(folder / "people", range(4), range(12))
    asked = {"data": ["people"], "encoder": "image", "image_size": 16, "augment": "none", "epochs": 1.0}
    with serving(link, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        model = until(api, api.start_job("train", asked).id, ended)
        assert model.state == "succeeded", model.error
        further = until(api, api.start_job("train", {**asked, "encoder": model.result}).id, ended)
        assert further.state == "succeeded", further.error
        job = until(api, api.start_job("index", {"model": further.result, "data": ["people"]}).id, ended)
        assert job.state == "succeeded", job.error
        assert api.promote_job(job.id).promoted
        found = api.search([(folder / "people" / "d1" / "000.png").read_bytes()]).results[0]
        assert found.hits[0].label == "d1"


@pytest.mark.skipif("SUREMATCH_TRAIN_JOB" not in os.environ, reason="training takes long: make test-jobs")
def test_a_trained_model_is_indexed_by_the_next_job(folder: Path, link: Path) -> None:
    with serving(link, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        started = api.start_job("train", {"data": ["data/items.csv"], "epochs": 1.0})
        model = until(api, started.id, ended, seconds=240)
        assert model.state == "succeeded", model.error
        assert model.progress is not None
        assert model.progress.what == "training"
        with pytest.raises(ServiceProblem, match="A model is not served: index with it"):
            api.promote_job(model.id)
        job = until(api, api.start_job("index", {**INDEX, "model": model.result}).id, ended)
        assert job.state == "succeeded", job.error
        assert api.promote_job(job.id).promoted
        assert api.search([KNOWN[0][0]]).results[0].hits
