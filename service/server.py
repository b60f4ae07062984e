"""uvicorn around the application: announces the address once it answers, drains on SIGTERM and Ctrl-C, exits 0."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType

import uvicorn

from service.app import create_app
from service.serving import Serving
from service.settings import ServeSettings

DRAIN_SECONDS = 10


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            sys.stdout.write(self.greeting)
            sys.stdout.flush()


def run(settings: ServeSettings, serving: Serving, listening: socket.socket) -> None:
    """Serve on a bound socket until a signal; requests under way get `DRAIN_SECONDS` to finish."""
    config = uvicorn.Config(
        create_app(settings, serving),
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="info" if settings.access_log else "warning",
        access_log=settings.access_log,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
    )
    # uvicorn raises the signal once more after draining; handled here, so that a requested stop exits with 0.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _Announcing(config, _greeting(serving, listening)).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _greeting(serving: Serving, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    collection = serving.collection
    return (
        f"Serving {collection.name} ({collection.size:,} items) at http://{host}:{port}/  "
        f"(API: http://{host}:{port}/docs). Ctrl-C stops.\n"
    )


def _ignore(number: int, frame: FrameType | None) -> None: ...
