"""uvicorn around the application: announces the address once it answers, drains on SIGTERM and Ctrl-C, exits 0."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import FrameType

import uvicorn
from fastapi import FastAPI

from index.errors import SettingsError
from service.app import create_app
from service.http.protocol import PatientProtocol
from service.serving.collection import Serving
from service.settings import ServeSettings
from service.telemetry import logs

DRAIN_SECONDS = 10
WAITING = 2048
"""Connections that may wait to be accepted."""
GARBAGE = 20_000
"""Objects made and not given back between two looks for cycles, of which answers have none. With 700, Python's own
figure, requests are looked through again and again before they are answered."""


class _Server(uvicorn.Server):
    """Says where it listens, and after SIGTERM answers on for a while.

    /readyz turns 503 at once, but a load balancer learns of it only when it asks: until then it sends requests here.
    """

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, announce: Callable[[], None], notice_seconds: float
    ) -> None:
        super().__init__(config)
        self.app = app
        self.announce = announce
        self.notice_seconds = notice_seconds
        self.leave_at: float | None = None
        self.taken = False
        """The port: two services may bind it, and the first to listen has it."""
        app.state.under_way = lambda: len(self.server_state.tasks)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM or self.leave_at is not None:
            super().handle_exit(sig, frame)
            return
        self.app.state.draining = True
        self.leave_at = time.monotonic() + self.notice_seconds

    async def on_tick(self, counter: int) -> bool:
        if self.leave_at is not None and time.monotonic() >= self.leave_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self.taken = self.should_exit = True
            await self.lifespan.shutdown()
        if self.started:
            self.announce()


def run(
    settings: ServeSettings,
    servings: Mapping[str, Serving],
    listening: socket.socket,
    supervisor: Connection | None = None,
) -> None:
    """Serve on a bound socket until a signal; requests under way get `DRAIN_SECONDS` to finish."""
    app = create_app(settings, servings, supervisor)
    greeting = _greeting(servings, listening)

    def announce() -> None:
        # asyncio's backlog is also how often it accepts at a time: once, or the first of several workers to wake would
        # take all connections, and without a file descriptor left each try is a line in the log. Those that wait are
        # the kernel's affair.
        listening.listen(WAITING)
        # what is here now, stays: to look through it for cycles, again and again, is what slow requests waited for
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE, *gc.get_threshold()[1:])
        if supervisor is not None:
            whole = not any(serving.collection.warnings for serving in servings.values())
            supervisor.send(("ready", (greeting, whole)))
            return
        sys.stdout.write(greeting)
        sys.stdout.flush()

    config = uvicorn.Config(
        app,
        http=type("Protocol", (PatientProtocol,), {"patience": settings.receive_seconds}),
        ws="none",
        lifespan="on",
        log_config=logs.configuration(access=settings.access_log),
        access_log=False,  # service/telemetry/logs.py writes its own, without the addresses
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[str(proxy) for proxy in settings.trusted_proxies],
        backlog=1,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
    )
    # uvicorn raises the signal once more after draining; handled here, so that a requested stop exits with 0.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server = _Server(config, app, announce, settings.drain_notice_seconds)
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if server.taken:
        port = listening.getsockname()[1]
        raise SettingsError(
            f"{settings.host}:{port} was taken by another program while this one started. Choose another with --port."
        )


def _greeting(servings: Mapping[str, Serving], listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    named = [(name, serving.collection.size) for name, serving in servings.items()]
    return (
        f"Serving {', '.join(f'{name} ({size:,} items)' for name, size in named)} at http://{host}:{port}/  "
        f"(API: http://{host}:{port}/docs). Ctrl-C stops.\n"
    )


def _ignore(number: int, frame: FrameType | None) -> None: ...
