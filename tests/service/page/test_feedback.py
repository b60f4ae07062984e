""" "Was this right?" and the key, on the page in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2
from playwright.sync_api import Browser, Page, Request, Response, Route, expect

from index.items.store import ItemStore
from service.http import keys
from tests.service.conftest import serving
from tests.service.gallery import KNOWN
from tests.service.page.helpers import ask


def test_feedback_reaches_the_store(browser: Browser, collection: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(collection, tmp_path / "home")
    text, label = KNOWN[0]
    with serving(folder, "--writable") as server:
        context = browser.new_context(base_url=server.url)
        page = context.new_page()
        page.goto("/")
        ask(page, text)
        page.get_by_role("button", name="Yes").click()
        expect(page.locator("#feedback")).to_contain_text("Thank you")
        ask(page, text)
        page.get_by_role("button", name="No", exact=True).click()
        page.get_by_role("button", name="Nothing here matches").click()
        expect(page.locator("#feedback")).to_contain_text("Thank you")
        context.close()
    store = ItemStore(folder / "items.sqlite", 32)
    notes = store.feedback()
    labels, vectors = notes.labels, notes.vectors
    store.close()
    assert labels == [label, None]
    assert (vectors[0] == vectors[1]).all()


def test_feedback_names_any_label_and_nothing_that_was_not_chosen(
    browser: Browser, collection: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(collection, tmp_path / "home")
    sent: list[Request] = []
    with serving(folder, "--writable") as server:
        asked = httpx2.post(f"{server.url}/v1/search", json={"queries": [{"text": KNOWN[0][0]}]}).json()["results"][0]
        labels = httpx2.get(f"{server.url}/v1/labels").json()["labels"]
        page = browser.new_page(base_url=server.url)
        page.on("request", lambda request: sent.append(request) if request.url.endswith("/v1/feedback") else None)
        page.goto("/")
        ask(page, KNOWN[0][0])
        page.get_by_role("button", name="No", exact=True).click()
        page.get_by_role("button", name="I don't know").click()
        page.get_by_role("button", name="No", exact=True).click()
        right, send = page.get_by_label("What is right"), page.get_by_role("button", name="Send")
        expect(right).to_have_value("")
        expect(send).to_be_disabled()
        expect(page.locator("#known-labels option")).to_have_count(len(labels))
        right.fill("no such label")
        expect(page.locator("#known-labels option")).to_have_count(0)
        right.press("Enter")
        expect(send).to_be_disabled()
        assert not sent
        least = min(labels, key=lambda label: {e["label"]: e["probability"] for e in asked["labels"]}.get(label, 0))
        right.fill(least)
        send.click()
        expect(page.locator("#feedback")).to_contain_text("Thank you")
        page.close()
    store = ItemStore(folder / "items.sqlite", 32)
    assert store.feedback().labels == [least]
    store.close()


def test_feedback_is_sent_once_and_said_under_its_own_answer(
    browser: Browser, collection: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(collection, tmp_path / "home")
    late: list[Route] = []
    with serving(folder, "--writable") as server:
        page = browser.new_page(base_url=server.url)
        page.route("**/v1/feedback", lambda route: late.append(route))
        page.goto("/")
        ask(page, KNOWN[0][0])
        page.get_by_role("button", name="Yes").dblclick()
        expect(page.get_by_role("button", name="Yes")).to_be_disabled()
        expect(page.get_by_role("button", name="No", exact=True)).to_be_disabled()
        ask(page, KNOWN[1][0])
        expect(page.get_by_role("button", name="Yes")).to_be_enabled()
        assert len(late) == 1
        with page.expect_response("**/v1/feedback"):
            late[0].continue_()
        page.wait_for_timeout(200)
        expect(page.get_by_role("button", name="Yes")).to_be_enabled()
        expect(page.locator("#feedback")).not_to_contain_text("Thank you")
        page.close()
    store = ItemStore(folder / "items.sqlite", 32)
    assert store.feedback().labels == [KNOWN[0][1]]
    store.close()


def test_feedback_that_fails_is_told_and_can_be_sent_again(browser: Browser, collection: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(collection, tmp_path / "home")
    fails: list[Route] = []

    def once(route: Route) -> None:
        fails.append(route)
        route.abort() if len(fails) == 1 else route.continue_()

    with serving(folder, "--writable") as server:
        page = browser.new_page(base_url=server.url)
        page.route("**/v1/feedback", once)
        page.goto("/")
        ask(page, KNOWN[0][0])
        page.get_by_role("button", name="Yes").press("Enter")
        told = page.locator("#feedback > span")
        expect(told).to_have_text("It could not be kept.")
        expect(told).to_be_focused()  # which a screen reader speaks; the button that was used is gone
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(told).to_contain_text("Thank you")
        expect(told).to_be_focused()
        expect(page.get_by_role("button", name="Try again")).to_have_count(0)
        refusal = {"title": "Gone", "detail": "This query is no longer known."}
        page.route("**/v1/feedback", lambda route: route.fulfill(status=404, json=refusal))
        ask(page, KNOWN[0][0])
        page.get_by_role("button", name="Yes").click()
        expect(told).to_have_text("This query is no longer known.")  # and never will be: it is not offered to try
        expect(page.get_by_role("button", name="Try again")).to_have_count(0)
        page.close()
    store = ItemStore(folder / "items.sqlite", 32)
    assert store.feedback().labels == [KNOWN[0][1]]
    store.close()


def test_a_read_only_service_offers_no_feedback(page: Page) -> None:
    ask(page, KNOWN[0][0])
    expect(page.locator("#verdict .kind")).to_be_visible()
    expect(page.locator("#feedback")).to_be_hidden()


def test_the_page_asks_for_the_key_the_service_asks_for(browser: Browser, collection: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys.add(file, "page", ["search"])
    with serving(collection, "--keys", str(file)) as server:
        context = browser.new_context(base_url=server.url)
        page = context.new_page()
        page.goto("/")
        page.fill("#key", "sm_wrong")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("dialog")).to_contain_text("not valid")
        page.fill("#key", f" {key}\u200b")  # as it may be copied
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#served")).to_contain_text("items")
        ask(page, KNOWN[0][0])
        expect(page.locator("#verdict h1")).to_have_text(KNOWN[0][1])
        context.close()


def test_a_browser_that_keeps_nothing_for_pages_takes_the_key_all_the_same(
    browser: Browser, collection: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    key = keys.add(file, "page", ["search"])
    refuse = (
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
    )
    with serving(collection, "--keys", str(file)) as server:
        page = browser.new_page(base_url=server.url)
        page.add_init_script(refuse)
        page.goto("/")
        page.fill("#key", key)
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#served")).to_contain_text("items")
        ask(page, KNOWN[0][0])
        expect(page.locator("#verdict h1")).to_have_text(KNOWN[0][1])
        page.close()


def test_a_late_refusal_of_a_wrong_key_does_not_ask_again(browser: Browser, collection: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys.add(file, "page", ["search"])
    late: list[Route] = []

    def refused(request: Request) -> bool:
        return request.url.endswith("/v1/calibration") and "sm_wrong" in request.headers.get("authorization", "")

    def hold(route: Route) -> None:
        if refused(route.request):
            late.append(route)
        else:
            route.continue_()

    def answered(reply: Response) -> bool:
        return refused(reply.request) and reply.status == 401

    with serving(collection, "--keys", str(file)) as server:
        context = browser.new_context(base_url=server.url)
        page = context.new_page()
        page.route("**/v1/calibration", hold)
        page.goto("/")
        page.fill("#key", "sm_wrong")
        with page.expect_request(refused):
            page.get_by_role("button", name="Continue").click()
        expect(page.locator("dialog")).to_contain_text("not valid")
        page.fill("#key", key)
        page.get_by_role("button", name="Continue").click()
        with page.expect_response(answered):
            late[0].continue_()
        expect(page.locator("#served")).to_contain_text("items")
        expect(page.locator("dialog")).to_have_count(0)
        context.close()
