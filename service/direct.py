"""Routes without FastAPI's way to them, for what is asked thousands of times a second.

FastAPI resolves dependencies and opens two exit stacks for every request; a route that reads its own body and writes
its own answer needs neither. The declared route stays for the OpenAPI document.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match, Route
from starlette.types import Scope


class _Direct(Route):
    """Answers for a declared route."""

    def __init__(self, declared: APIRoute) -> None:
        methods = declared.methods or set()
        super().__init__(declared.path, declared.endpoint, methods=sorted(methods), include_in_schema=False)
        self.methods = set(methods)  # without the HEAD that Starlette adds

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        # a request of another method is for another route of the same path
        return (match, {**child, "route": self}) if match is Match.FULL else (Match.NONE, {})


def direct(router: APIRouter) -> list[Route]:
    """The router's routes whose endpoints take the request alone."""
    return [_Direct(route) for route in router.routes if isinstance(route, APIRoute) and _takes_request_alone(route)]


def _takes_request_alone(route: APIRoute) -> bool:
    needs = route.dependant
    others = (needs.path_params, needs.query_params, needs.header_params, needs.cookie_params, needs.body_params)
    return needs.request_param_name is not None and not any(others) and not needs.dependencies
