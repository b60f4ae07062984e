"""The pages people look at: `/` (search), `/calibration`, `/collection`, `/docs` (the API), and the problem types.

No page loads anything from elsewhere: Swagger UI's files come from the package `fastapi-swagger`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from service.problems import KINDS, Problem

WEB = Path(__file__).parent.parent / "web"
router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(WEB / "index.html")


@router.get("/calibration")
async def calibration() -> FileResponse:
    return FileResponse(WEB / "calibration.html")


@router.get("/collection")
async def collection() -> FileResponse:
    return FileResponse(WEB / "collection.html")


@router.get("/docs")
async def docs() -> FileResponse:
    return FileResponse(WEB / "docs.html")


@router.get("/favicon.ico")
async def favicon() -> FileResponse:
    return FileResponse(WEB / "icon.svg", media_type="image/svg+xml")


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
    app.mount("/web", StaticFiles(directory=WEB), name="web")
