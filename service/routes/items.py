"""`/v1/items`: writing, reading and deleting what is searched; `/v1/feedback`: what a query's right answer was."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.convertors import PathConvertor, register_url_convertor

from index.collection import Receipt
from index.items.gallery import Gallery
from index.strict_json import parsed
from service.http.access import may_write
from service.problems import Fault, Problem, documented
from service.routes.state import JSON_BODY, audited, body_of, json_body, json_response, serving_of, validated
from service.schemas.items import (
    DeletedReply,
    FeedbackReply,
    FeedbackRequest,
    ItemReply,
    WrittenReply,
)
from service.serving.writer import RecentQuery


class _IdConvertor(PathConvertor):
    """Any text, slashes and the ends of lines among it, which the framework's own `path` stops at."""

    regex = "(?s:.*)"


register_url_convertor("id", _IdConvertor())
router = APIRouter(prefix="/v1", tags=["items"])
B = TypeVar("B", bound=BaseModel)
_READ = documented("invalid-request", "not-ready")
_WRITE = documented("conflict", "busy", "not-ready", "disk-full")
_WAIT = {
    "name": "wait",
    "in": "query",
    "required": False,
    "schema": {"type": "string", "enum": ["indexed"]},
    "description": "every write is searchable when it is answered; this only says that you rely on it",
}
_KEEPS_NO_QUERIES = (
    "This service is read-only, so its answers have no query ids and no feedback is kept. Ask and tell one that was "
    "started with --writable."
)


def _body(model: str) -> dict[str, Any]:
    return {**body_of(model), "parameters": [_WAIT]}


@router.put(
    "/items",
    summary="Write items",
    response_model=WrittenReply,
    responses={**_WRITE, **JSON_BODY},
    openapi_extra=_body("PutRequest"),
)
async def put_items(request: Request) -> Response:
    """All items or none. When it is answered they are on disk and searchable; an id that exists is replaced.

    An item has a text or an image, which are encoded here, or a vector of the collection's model.
    """
    _check_wait(request)
    asked = await _unambiguous(request, request.app.state.put_model)
    items = [item.new() for item in asked.items]
    with (
        serving_of(request) as serving,
        audited(request, serving.name, lambda audit: audit.writing(request, serving.name, items)),
    ):
        receipt = await serving.write(lambda: serving.collection.upsert(items), len(items))
    return json_response({"sequence": receipt.sequence, "written": receipt.written, "replaced": receipt.replaced})


@router.post(
    "/items:delete",
    summary="Delete items by their ids or by a filter",
    response_model=DeletedReply,
    responses={**_WRITE, **JSON_BODY},
    openapi_extra=_body("DeleteRequest"),
)
async def delete_items(request: Request) -> Response:
    """Those that exist are not searchable when it is answered; compaction erases them from all files."""
    _check_wait(request)
    asked = await _unambiguous(request, request.app.state.delete_model)
    with serving_of(request) as serving:
        collection = serving.collection

        def delete() -> Receipt:
            return collection.delete(asked.ids) if asked.ids else collection.delete_where(asked.filter or {})

        with audited(
            request, serving.name, lambda audit: audit.deleting(request, serving.name, asked.ids, asked.filter)
        ):
            receipt = await serving.write(delete, len(asked.ids or [0]))
    return json_response({"sequence": receipt.sequence, "deleted": receipt.deleted})


@router.get(
    "/items/{id:id}", summary="One item", response_model=ItemReply, responses={**_READ, **documented("no-such-item")}
)
async def get_item(request: Request, id: str) -> Response:
    """Without its vector: a text can be guessed from it. Keys that may write see those whose consent ended, too."""
    with serving_of(request) as serving:
        collection = serving.collection
        item = await asyncio.to_thread(lambda: collection.item(id))
        hidden = item is not None and not await asyncio.to_thread(lambda: collection.findable([id]))
    if item is None or (hidden and not may_write(request.scope)):
        raise _no_such_item()
    return json_response({"id": item.id, "label": item.label, "text": item.text, "metadata": item.metadata})


@router.delete(
    "/items/{id:id}",
    summary="Delete one item",
    response_model=DeletedReply,
    responses={**_WRITE, **documented("invalid-request", "no-such-item")},
    openapi_extra={"parameters": [_WAIT]},
)
async def delete_item(request: Request, id: str) -> Response:
    """Not searchable when it is answered; compaction erases it from all files."""
    _check_wait(request)
    with serving_of(request) as serving:
        if await asyncio.to_thread(lambda: serving.collection.item(id)) is None:
            raise _no_such_item()
        with audited(request, serving.name, lambda audit: audit.deleting(request, serving.name, [id])):
            receipt = await serving.write(lambda: serving.collection.delete([id]))
    return json_response({"sequence": receipt.sequence, "deleted": receipt.deleted})


@router.post(
    "/feedback",
    summary="Say what was right",
    response_model=FeedbackReply,
    responses={**_WRITE, **JSON_BODY, **documented("no-such-query")},
    openapi_extra=body_of("FeedbackRequest"),
)
async def feedback(request: Request) -> Response:
    """Keeps the right label of a recent query, null for "nothing here matches", for the next recalibration.

    Null speaks of the whole collection, so it is refused for a query that was asked with a filter.
    """
    asked = validated(FeedbackRequest, await json_body(request))
    with serving_of(request) as serving:
        if serving.recent is None:
            raise Problem("conflict", _KEEPS_NO_QUERIES)
        query = serving.recent.get(asked.query_id)
        if query is None:
            raise Problem("no-such-query", "No recent answer has this query id.")
        await _check_label(asked.label, query, serving.collection.gallery)
        with audited(
            request, serving.name, lambda audit: audit.feedback(request, serving.name, asked.query_id, asked.label)
        ):
            await serving.write(lambda: serving.collection.feedback(query.vector, asked.label, asked.query_id))
    return json_response({"kept": True})


async def _check_label(label: str | None, query: RecentQuery, gallery: Gallery) -> None:
    """Raises `Problem` for a label that nothing has, and for none where the query had a filter: what was asked for was
    not there, the rest of the gallery nobody looked at, and the calibration would take the query for unknown to it."""
    if label is None and query.filtered:
        why = "the query had a filter, and null speaks of the whole collection; ask again without it, or name the label"
    elif label is not None and not await asyncio.to_thread(gallery.has_label, label):
        why = "the collection has no such label; null says that nothing here matches"
    else:
        return
    raise Problem("invalid-request", f"/label: {why}.", [Fault("/label", why)])


async def _unambiguous(request: Request, model: type[B]) -> B:
    """The body. Raises `Problem`, also for a member named twice: JSON keeps one of two, and more would be deleted, or
    less written, than was said."""
    body = await json_body(request)
    asked = validated(model, body)
    try:
        await asyncio.to_thread(parsed, body)
    except ValueError as error:
        raise Problem("not-json", f"The body cannot be parsed: {error}.") from None
    return asked


def _check_wait(request: Request) -> None:
    raw = request.scope["query_string"].decode("latin-1")
    if raw and parse_qsl(raw, keep_blank_values=True, max_num_fields=20) != [("wait", "indexed")]:
        fault = Fault("wait", "expected wait=indexed, once, and no other parameter")
        raise Problem("invalid-request", f"{fault.pointer}: {fault.detail}.", [fault])


def _no_such_item() -> Problem:
    return Problem("no-such-item", "The collection has no item with this id.")
