"""The pages of calibration, collection and API in a real browser, and choosing among collections."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.service.conftest import Server, serving
from tests.service.gallery import KNOWN
from tests.service.page.helpers import ask


def test_the_api_documentation_needs_nothing_from_elsewhere(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on(
        "request",
        lambda request: faults.append(request.url) if not request.url.startswith((server.url, "data:")) else None,
    )
    page.goto(server.url + "/docs")
    page.locator("#operations-search-post_search_v1_search_post").get_by_role("button").first.click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table td.response-col_status").nth(1)).to_contain_text("200")
    page.close()
    assert faults == []


def test_the_page_offers_the_collections_by_name(browser: Browser, collection: Path, uncalibrated: Path) -> None:
    with serving(Path(f"one={collection}"), f"two={uncalibrated}") as server:
        context = browser.new_context(base_url=server.url)
        page = context.new_page()
        page.goto("/")
        chosen = page.get_by_label("Collection")
        expect(chosen).to_have_value("one")
        with page.expect_navigation():  # the page is read anew for another collection
            chosen.select_option("two")
        expect(chosen).to_have_value("two")
        ask(page, KNOWN[0][0])
        expect(page.locator("#banner")).to_contain_text("not calibrated")
        page.get_by_role("link", name="Calibration").click()
        expect(chosen).to_have_value("two")
        expect(page.locator("#calibration")).to_be_hidden()
        page.get_by_role("link", name="Search").click()
        expect(page.locator("#text")).to_be_visible()
        with page.expect_navigation():
            chosen.select_option("one")
        expect(chosen).to_have_value("one")
        ask(page, KNOWN[0][0])
        expect(page.locator("#verdict h1")).to_have_text(KNOWN[0][1])
        context.close()


@pytest.mark.parametrize("page", ["", "calibration", "collection"])
def test_a_collection_that_is_not_there_is_said(browser: Browser, server: Server, page: str) -> None:
    opened = browser.new_page(base_url=server.url)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(f"/{page}?collection=nosuch")
    expect(opened.locator("#banner" if page else "#problem")).to_contain_text("There is no such collection")
    expect(opened.locator("#welcome")).to_be_hidden()
    opened.close()
    assert faults == []


def test_the_calibration_page_draws_what_was_measured(page: Page, server: Server) -> None:
    report = httpx2.get(f"{server.url}/v1/calibration").json()
    page.goto("/")
    page.get_by_role("link", name="Calibration").click()
    expect(page.locator("#diagram circle")).to_have_count(len(report["reliability"]))
    expect(page.locator("#rows tr")).to_have_count(len(report["reliability"]))
    expect(page.locator("#numbers dt")).to_have_count(11)
    expect(page.locator("#summary")).to_contain_text(f" and {report['queries']['unknowns']}, probabilities were off")
    expect(page.locator("#banner")).to_contain_text("told apart without one error")  # these topics are
    heights = page.eval_on_selector_all(
        "#diagram circle", "nodes => nodes.map((node) => Number(node.getAttribute('cy')))"
    )
    observed = [group["frequency"] for group in report["reliability"]]
    # the page's y axis points down: a frequency of 1 is at 10, of 0 at 280
    assert heights == pytest.approx([10 + 270 * (1 - frequency) for frequency in observed])


def test_the_risk_coverage_curve_is_drawn(page: Page, server: Server) -> None:
    points = httpx2.get(f"{server.url}/v1/calibration").json()["risk_coverage"]
    page.goto("/calibration")
    drawn = page.locator("#curve polyline")
    expect(drawn).to_be_visible()
    places = (drawn.get_attribute("points") or "").split()
    assert len(places) == len(points) <= 100
    assert float(places[-1].split(",")[0]) == pytest.approx(40 + 270)
    highest = max(point["risk"] for point in points)
    most = next(limit for limit in (0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 1) if highest <= limit)
    ends = [10 + 270 * (1 - point["risk"] / most) for point in points]
    assert [float(place.split(",")[1]) for place in places] == pytest.approx(ends)
    expect(page.locator("#half")).to_contain_text("Of the surest half")


def test_the_collection_page_says_what_is_served(page: Page, server: Server) -> None:
    served = httpx2.get(f"{server.url}/v1/collection").json()
    assert sum(entry["items"] for entry in served["labels_by_size"]) == served["items"]
    page.goto("/")
    page.get_by_role("link", name="Collection").click()
    facts = page.locator("#facts")
    for said in (served["model"], served["snapshot"], served["calibration_id"], "1 (exact)"):
        expect(facts).to_contain_text(said)
    expect(page.locator("#sizes > li")).to_have_count(len(served["labels_by_size"]))
    expect(page.locator("#sizes > li").first).to_contain_text(served["labels_by_size"][0]["label"])
    expect(page.locator("#drift")).not_to_be_empty()
    expect(page.locator("#summary")).to_contain_text(f"items of {served['labels']} labels")
    assert page.evaluate("window.stolen") is None
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= 360")
    assert page.locator("#facts dt").first.bounding_box()["width"] > 60  # type: ignore[index]


@pytest.mark.parametrize(("pending", "way_out"), [(0, "Collect feedback"), (3, "POST /v1/admin/snapshot")])
def test_what_to_do_about_other_questions_depends_on_whether_items_have_changed(
    page: Page, server: Server, pending: int, way_out: str
) -> None:
    served = httpx2.get(f"{server.url}/v1/collection").json()
    told = served | {"pending": pending, "drift": {"queries": 500, "verdict": "much"}}
    page.route("**/v1/collection", lambda route: route.fulfill(json=told))
    page.goto("/collection")
    expect(page.locator("#drift")).to_contain_text(way_out)


def test_without_calibration_its_page_says_why(browser: Browser, uncalibrated: Path) -> None:
    with serving(uncalibrated) as server:
        context = browser.new_context(base_url=server.url)
        page = context.new_page()
        page.goto("/calibration")
        expect(page.locator("#banner")).to_be_visible()
        expect(page.locator("#calibration")).to_be_hidden()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        context.close()
