"""`/v1/jobs`: training, indexing and recalibration beside the service; what they make is served once it is promoted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from index.collection import Collection
from index.errors import Displaced, SurematchError
from index.items.store import ItemStore
from index.storage.folder import ITEMS
from index.storage.place import resolved
from service.jobs.runner import ENDED, QUEUE, Job, Jobs, new_id
from service.problems import Problem, documented
from service.routes.state import JSON_BODY, body_of, currents_of, json_body, json_response, named, operated, validated
from service.schemas.jobs import JobReply, JobRequest, JobsReply, PromoteRequest, RecalibrateJob
from service.serving.collection import Current, Serving

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=documented("conflict", "not-ready"))
_BODY = {**JSON_BODY, **documented("disk-full")}
_ONE = documented("no-such-job")
EVENT_SECONDS = 0.5
"""Between two looks at a job's progress."""


@router.post(
    "",
    summary="Train, index or recalibrate",
    response_model=JobReply,
    responses={**_BODY, **documented("busy", "no-such-collection")},
    openapi_extra=body_of("JobRequest"),
)
async def start_job(request: Request) -> Response:
    """Queues a job. They run one after another, each in a process of its own with a limit on its memory; a job that the
    service's end interrupts is continued when it starts again."""
    jobs = _jobs(request)
    asked = validated(JobRequest, await json_body(request)).root
    if jobs.waiting() >= QUEUE:
        request.app.state.metrics.refused.inc()
        raise Problem("busy", f"{QUEUE} jobs wait already.", headers={"Retry-After": "60"})
    source, name, id = None, None, new_id()
    if isinstance(asked, RecalibrateJob):
        current = named(request, asked.settings.collection)
        name, source = current.name, current.settings.folders[current.name].resolve()
    with operated(request, name, "job", kind=asked.kind, job=id):
        return json_response((await jobs.add(id, asked, source)).told())


@router.get("", summary="All jobs", response_model=JobsReply)
async def list_jobs(request: Request) -> Response:
    """Oldest first."""
    return json_response({"jobs": [job.told() for job in _jobs(request).all()]})


@router.get("/{id}", summary="One job", response_model=JobReply, responses=_ONE)
async def get_job(request: Request, id: str) -> Response:
    """Its state, and how far it is."""
    return json_response(_job(_jobs(request), id).told())


@router.get(
    "/{id}/log",
    summary="What a job said",
    response_class=Response,
    responses={**_ONE, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def job_log(request: Request, id: str) -> Response:
    """The last 64 KiB of its process' messages."""
    jobs = _jobs(request)
    return Response(jobs.log(_job(jobs, id)), media_type="text/plain; charset=utf-8")


@router.get(
    "/{id}/events",
    summary="A job's progress as server-sent events",
    response_class=Response,
    responses={**_ONE, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def job_events(request: Request, id: str) -> Response:
    """The job, as `GET /v1/jobs/{id}` has it, now and at every change, until it has ended."""
    jobs = _jobs(request)
    _job(jobs, id)

    async def events() -> AsyncIterator[bytes]:
        told = None
        while True:
            job = jobs.get(id)
            if job is None:
                return
            if (now := job.told()) != told:
                yield b"data: " + orjson.dumps(now) + b"\n\n"
                told = now
            if job.state in ENDED or request.app.state.draining:
                return
            await jobs.change(id, EVENT_SECONDS)

    return StreamingResponse(events(), media_type="text/event-stream")


@router.delete(
    "/{id}",
    summary="Cancel a job, or delete one that has ended",
    response_model=JobReply,
    responses={**_ONE, **documented("disk-full")},
)
async def delete_job(request: Request, id: str) -> Response:
    """Of a job that has not ended, ends its process; nothing of its result stays. A job that has ended is removed with
    its folder, its result and its log, and answered as it was; 409 while a collection is served from what it made, or
    another job that has not ended takes it."""
    jobs = _jobs(request)
    job = _job(jobs, id)
    if job.state not in ENDED:
        with operated(request, None, "cancel", job=id):
            return json_response((await jobs.cancel(job)).told())
    async with jobs.results:
        job = _job(jobs, id)
        _check_unserved(request, jobs.folder / id)
        if (other := jobs.needed_by(id)) is not None:
            raise Problem("conflict", f"The job {other} takes what this one made. Delete it once that has ended.")
        with operated(request, None, "remove", job=id):
            return json_response((await jobs.remove(job)).told())


def _check_unserved(request: Request, folder: Path) -> None:
    """Raises `Problem` when a collection lies in the job's `folder` that is served, or that a link to be served leads
    to."""
    for name, current in currents_of(request).items():
        opened = [] if current.serving is None else [current.serving.collection.path]
        if any(path.is_relative_to(folder) for path in (resolved(current.settings.folders[name]), *opened)):
            raise Problem(
                "conflict",
                f"The collection {name} is served from what this job made. Promote another job, or point the link "
                "elsewhere and reload; then delete this one.",
            )


@router.post(
    "/{id}/promote",
    summary="Serve what a job made",
    response_model=JobReply,
    responses={**_ONE, **_BODY, **documented("no-such-collection")},
    openapi_extra=body_of("PromoteRequest"),
)
async def promote_job(request: Request, id: str) -> Response:
    """Points the served collection's link at the job's collection and reloads it: no request fails, and a collection
    that is damaged is refused and the link put back. The collection must be served by a link (`ln -s`), so that a
    restart serves the same. A recalibration goes to the collection it is a copy of."""
    jobs = _jobs(request)
    asked = validated(PromoteRequest, await json_body(request))
    async with jobs.results:
        job = _job(jobs, id)
        await _promote(request, jobs, job, named(request, asked.collection or _recalibrated(job)))
        return json_response((await jobs.promoted(job)).told())


async def _promote(request: Request, jobs: Jobs, job: Job, current: Current) -> None:
    if job.state != "succeeded" or job.kind == "train" or job.result is None:
        what = "A model is not served: index with it." if job.kind == "train" else f"The job is {job.state}."
        raise Problem("conflict", f"There is no finished collection. {what}")
    await current.check_reloads()
    if job.kind == "recalibrate" and current.serving is not None:
        with current.serving.used() as serving:
            await asyncio.to_thread(_check_unchanged, jobs, job, serving)
    name = current.name
    link = current.settings.folders[name]
    if not link.is_symlink():
        raise Problem("conflict", f"The collection {name} is served from a folder, not a link. Serve a link to it.")
    before = link.readlink()
    with operated(request, name, "promote", job=job.id):
        _point(link, jobs.folder / job.result)
        try:
            await current.reload()
        except SurematchError as error:
            _point(link, before)
            raise Problem("conflict", f"The new collection is refused and the old one serves on. {error}") from None


def _recalibrated(job: Job) -> str | None:
    """The collection that a recalibration copied, None for the default one, and for other jobs."""
    name: str | None = job.settings.get("collection") if job.kind == "recalibrate" else None
    return name


def _check_unchanged(jobs: Jobs, job: Job, serving: Serving) -> None:
    """Raises `Problem` when a recalibrated copy lacks what the served collection has had since: writes, feedback, and
    the choice of another calibration."""
    made = orjson.loads((jobs.folder / job.id / "result.json").read_bytes())
    served = serving.collection
    if str(resolved(serving.folder)) == job.source:
        with suppress(Displaced):
            served.refresh()  # not as it was a moment ago
            copy = jobs.folder / job.id / "out"
            if (
                served.sequence <= made["sequence"]
                and served.state.calibration_id == made.get("replaced")
                and _last_feedback(served.path, served) <= _last_feedback(copy, served)
            ):
                return
    elif _recalibrated(job) not in (None, serving.name):
        raise Problem("conflict", f"The job recalibrated {_recalibrated(job)}, not {serving.name}. Promote it there.")
    raise Problem("conflict", "The collection has changed since it was copied. Recalibrate it again.")


def _last_feedback(folder: Path, like: Collection) -> int:
    with closing(ItemStore(folder / ITEMS, like.encoder.dimension, create=False)) as store:
        return store.last_feedback


def _point(link: Path, target: Path) -> None:
    beside = link.with_name(f".{link.name}-promoted")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)


def _jobs(request: Request) -> Jobs:
    jobs: Jobs | None = request.app.state.jobs
    if jobs is None:
        raise Problem("conflict", "This service runs no jobs: it was started without --jobs DIR.")
    return jobs


def _job(jobs: Jobs, id: str) -> Job:
    job = jobs.get(id)
    if job is None:
        raise Problem("no-such-job", "There is no job of this id.")
    return job
