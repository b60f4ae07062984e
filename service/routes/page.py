"""The pages people look at: `/` (search), `/calibration`, `/collection`, `/docs` (the API), and the problem types.

No page loads anything from elsewhere: Swagger UI's files come from the package `fastapi-swagger`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles

from service.problems import KINDS, Problem

WEB = Path(__file__).parent.parent / "web"
router = APIRouter(include_in_schema=False)
_web = StaticFiles(directory=WEB)
"""Answers 304 to who has a file already."""


@router.get("/")
async def page(request: Request) -> Response:
    return await _web.get_response("index.html", request.scope)


@router.get("/calibration")
async def calibration(request: Request) -> Response:
    return await _web.get_response("calibration.html", request.scope)


@router.get("/collection")
async def collection(request: Request) -> Response:
    return await _web.get_response("collection.html", request.scope)


@router.get("/docs")
async def docs(request: Request) -> Response:
    return await _web.get_response("docs.html", request.scope)


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    return await _web.get_response("icon.svg", request.scope)


@router.get("/problems/{slug}")
async def problem(slug: str) -> JSONResponse:
    """What a problem's `type` means."""
    if slug not in KINDS:
        raise Problem("not-found", "There is no such problem type.")
    kind = KINDS[slug]
    return JSONResponse({"type": f"/problems/{slug}", "title": kind.title, "status": kind.status, "do": kind.remedy})


def mount(app: FastAPI) -> None:
    swagger = Path(str(files("fastapi_swagger.resources")))
    app.mount("/web/swagger", StaticFiles(directory=swagger), name="swagger")
    app.mount("/web", _web, name="web")
