"""The page open in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.service.conftest import Server


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The open page; fails the test for anything on the console, a request elsewhere, or a fault."""
    context = browser.new_context(base_url=server.url)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if not request.url.startswith(server.url) else None)
    page.goto("/")
    yield page
    context.close()
    # the browser itself reports every answer of 422 on the console
    assert [fault for fault in faults if "status of 422" not in fault] == []
