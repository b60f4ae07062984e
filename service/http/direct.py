"""Requests that come thousands of times a second, answered before FastAPI sees them.

FastAPI looks through its routes, resolves dependencies and opens exit stacks for every request; an endpoint that reads
its own body and writes its own answer needs none of it. The declared route stays for the OpenAPI document, and for
whatever is asked of its address otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems


class Direct:
    """Calls the endpoints of the `routers` that take the request alone, at their addresses without a parameter.

    What they raise becomes the answer that `service.problems` has for it. Everything else is the application's.
    """

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        self.app = app
        self.routes = {(method, route.path): route for route in _alone(routers) for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            answer: Any = await route.endpoint(request)
        except problems.ANSWERED as error:
            answer = await problems.answer(request, error)
        await answer(scope, receive, send)


def _alone(routers: Iterable[APIRouter]) -> list[APIRoute]:
    routes = [route for router in routers for route in router.routes]
    return [route for route in routes if isinstance(route, APIRoute) and _takes_request_alone(route)]


def _takes_request_alone(route: APIRoute) -> bool:
    needs = route.dependant
    others = (needs.path_params, needs.query_params, needs.header_params, needs.cookie_params, needs.body_params)
    return needs.request_param_name is not None and not any(others) and not needs.dependencies
