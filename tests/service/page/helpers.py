"""What is done on the page."""

from __future__ import annotations

from playwright.sync_api import Page

PHONE = {"width": 390, "height": 844}


def ask(page: Page, text: str) -> None:
    page.fill("#text", text)
    with page.expect_response("**/search"):
        page.press("#text", "Enter")
