"""A small real collection, and a real server on it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.service.gallery import build

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """A `surematch serve` process."""

    url: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def serving(collection: Path, *words: str) -> Iterator[Server]:
    """`surematch serve` on a free port, from its announcement to its end. `words`: more collections, then flags."""
    more = list(takewhile(lambda word: not word.startswith("-"), words))
    flags = words[len(more) :]
    command = [sys.executable, "-c", "import sys; from service.cli import serve; sys.exit(serve(sys.argv[1:]))"]
    process = subprocess.Popen(
        [*command, str(collection), *more, "--port", "0", "--drain-notice-seconds", "0", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    try:
        said = ""
        while not (found := re.search(r"http://[^ ]+/(?=  )", said)):
            line = process.stdout.readline()
            said += line
            assert line, f"the server ended before it answered:\n{said}"
        yield Server(found[0].rstrip("/"), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("gallery"), calibrated=True)


@pytest.fixture(scope="session")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("uncalibrated"), calibrated=False)


@pytest.fixture(scope="session")
def server(collection: Path) -> Iterator[Server]:
    with serving(
        collection, "--max-body-bytes", "1000000", "--max-queries", "50", "--max-text-chars", "2000"
    ) as running:
        yield running


@pytest.fixture(scope="session")
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: the page was not tested")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield launched
        launched.close()
