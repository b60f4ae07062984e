"""The web page in a real browser: what it shows, that data never runs as script, and that keyboard and phone work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Request, Response, Route, expect, sync_playwright

from index.items.store import ItemStore
from service.http import keys
from tests.service.conftest import Server, serving
from tests.service.gallery import KNOWN, UNKNOWN, XSS_LABEL, XSS_TEXT

PHONE = {"width": 390, "height": 844}


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


def ask(page: Page, text: str) -> None:
    page.fill("#text", text)
    with page.expect_response("**/search"):
        page.press("#text", "Enter")


def test_a_question_with_an_answer(page: Page) -> None:
    text, label = KNOWN[0]
    ask(page, text)
    expect(page.locator("#verdict .kind")).to_have_text("Match")
    expect(page.locator("#verdict h1")).to_have_text(label)
    expect(page.locator("#verdict .why")).to_have_css("border-top-width", "0px")  # the line is of "Why?" alone
    expect(page.locator("#verdict .percent")).to_have_text(re.compile(r"^[\d.> ]+ %$"))
    expect(page.locator("#hits > li")).to_have_count(10)
    expect(page.locator("#hits .cosine").first).to_have_text(re.compile(r"^cosine -?[01]\.\d{3}$"))
    expect(page.locator("#labels .no .name")).to_contain_text("no match")
    expect(page.locator("#set")).to_contain_text(label)
    expect(page.locator("#status")).to_have_text(re.compile(r"^Match: "))
    best, worst = (page.locator("#hits .track span").nth(n).bounding_box() for n in (0, 9))
    assert best
    assert worst
    assert best["width"] > worst["width"]


def test_a_question_nothing_fits(page: Page) -> None:
    ask(page, UNKNOWN[0])
    expect(page.locator("#verdict .kind")).to_have_text("No match")
    expect(page.locator("#labels > li").first).to_contain_text("no match")


def test_what_is_in_the_gallery_is_text_and_never_runs(page: Page) -> None:
    ask(page, XSS_TEXT)
    expect(page.locator("#hits .text").first).to_have_text(XSS_TEXT)
    expect(page.locator("#hits .tag").first).to_have_text(XSS_LABEL)
    page.goto("/#q=" + "%3Cimg%20src%3Dx%20onerror%3Dwindow.stolen%3D1%3E%20kitchen")
    expect(page.locator("#hits > li")).to_have_count(10)
    assert page.evaluate("window.stolen") is None
    assert page.locator("main img, main script").count() == 0


def test_scripts_from_elsewhere_or_inline_are_forbidden(page: Page) -> None:
    policy = (page.request.get("/")).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert page.request.get("/v1/collection").headers["x-content-type-options"] == "nosniff"


def test_maps_and_coverage_ask_again(page: Page) -> None:
    ask(page, KNOWN[0][0])
    for control, value in (("#map", "sparsemax"), ("#coverage", ""), ("#k", "5")):
        with page.expect_request("**/search") as sent:
            page.select_option(control, value)
    assert sent.value.post_data_json == {"queries": [{"text": KNOWN[0][0]}], "k": 5, "map": "sparsemax"}
    expect(page.locator("#set")).to_be_hidden()
    expect(page.locator("#hits > li")).to_have_count(5)
    expect(page.locator("#verdict .why")).to_contain_text("shorter list")
    page.select_option("#map", "taylor")  # which has no zeros
    expect(page.locator("#verdict .why")).to_contain_text("Another distribution")
    expect(page.locator("#verdict .why")).not_to_contain_text("zero")


def test_what_is_chosen_holds_for_the_answer_on_the_page_where_the_field_is_empty(page: Page) -> None:
    ask(page, KNOWN[0][0])
    page.fill("#text", "")
    with page.expect_request("**/search") as sent:
        page.select_option("#map", "sparsemax")
    assert sent.value.post_data_json["queries"] == [{"text": KNOWN[0][0]}]
    expect(page.locator("#verdict .why")).to_contain_text("shorter list")


def test_the_skip_link_leaves_the_address_of_the_answer(page: Page) -> None:
    ask(page, KNOWN[0][0])
    address = page.url
    page.locator(".skip").press("Enter")
    expect(page.locator("#results")).to_be_focused()
    assert page.url == address


def test_no_question_is_cut_and_a_long_one_has_no_address(page: Page) -> None:
    long = "kitchen " * 3000
    with page.expect_request("**/search") as sent:
        page.fill("#text", long)
        page.press("#text", "Enter")
    assert sent.value.post_data_json["queries"] == [{"text": long.strip()}]
    expect(page.get_by_role("alert")).to_contain_text("/queries/0/text")
    assert "#" not in page.url


def test_the_keyboard_is_enough(page: Page) -> None:
    page.locator("nav a").first.focus()
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type(KNOWN[0][0])
    page.keyboard.press("Enter")
    expect(page.locator("#verdict h1")).to_have_text(KNOWN[0][1])


def test_an_example_is_one_click(page: Page) -> None:
    example = page.locator("#examples button").first
    text = example.inner_text()
    example.click()
    expect(page.locator("#text")).to_have_value(text)
    expect(page.locator("#hits .text").first).to_have_text(text)


def test_a_link_to_an_answer_works(page: Page) -> None:
    ask(page, KNOWN[1][0])
    page.goto("about:blank")
    page.go_back()
    expect(page.locator("#verdict h1")).to_have_text(KNOWN[1][1])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_overflows_on_a_phone(page: Page, theme: str) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    for text in (KNOWN[0][0], UNKNOWN[0], "kitchen" * 60 + " kitchen"):
        ask(page, text)
        expect(page.locator("#answer")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_dark_and_light(page: Page) -> None:
    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = paper()
    page.click("#theme")
    assert paper() != before
    page.reload()
    assert paper() != before


def test_a_refusal_is_shown(page: Page) -> None:
    ask(page, KNOWN[0][0])
    expect(page.locator("#status")).not_to_be_empty()
    ask(page, "kitchen " * 300)  # longer than --max-text-chars
    expect(page.get_by_role("alert")).to_contain_text("/queries/0/text")
    expect(page.locator("#answer")).to_be_hidden()
    expect(page.locator("#status")).to_be_empty()  # a screen reader would find the answer before it there


def test_a_problem_leaves_nothing_of_the_answer_before_it(browser: Browser, uncalibrated: Path) -> None:
    with serving(uncalibrated) as server:
        page = browser.new_page(base_url=server.url)
        page.goto("/")
        ask(page, KNOWN[0][0])
        expect(page.locator("#banner")).to_be_visible()
        expect(page.locator("footer")).to_contain_text("snapshot")
        page.context.set_offline(True)
        page.press("#text", "Enter")
        expect(page.get_by_role("alert")).to_contain_text("The service did not answer")
        for left in ("#banner", "#answer", "#feedback", "#why"):
            expect(page.locator(left)).to_be_hidden()
        expect(page.locator("footer")).to_be_empty()
        expect(page.locator("#status")).to_be_empty()
        page.context.set_offline(False)
        ask(page, KNOWN[0][0])
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("#banner")).to_be_visible()
        expect(page.locator("footer")).to_contain_text("snapshot")
        page.close()


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


def test_the_page_says_when_nothing_is_calibrated(browser: Browser, uncalibrated: Path) -> None:
    with serving(uncalibrated) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#map")).to_be_disabled()
        expect(page.locator("#map option:checked")).to_have_text("not calibrated")
        expect(page.locator("#welcome p")).to_contain_text("without probabilities")
        ask(page, KNOWN[0][0])
        expect(page.locator("#banner")).to_contain_text("not calibrated")
        expect(page.locator("#hits > li").first).to_contain_text("cosine")
        expect(page.locator("#distribution")).to_be_hidden()
        assert "%" not in page.locator("#answer").inner_text()
        page.close()


def test_why_shows_the_evidence_behind_the_answer(page: Page, server: Server) -> None:
    text, label = KNOWN[0]
    ask(page, text)
    page.get_by_text("Why?").click()
    reasons = page.locator("#reasons")
    expect(reasons.locator("section h3").first).to_contain_text(label)
    asked = {"queries": [{"text": text}], "explain": True}
    why = httpx2.post(f"{server.url}/v1/search", json=asked).json()["results"][0]["explanation"]
    best = why["labels"][0]
    expect(reasons.locator("section").first).to_contain_text(f"{best['evidence']['best']:.3f}")
    expect(reasons.locator("section").first).to_contain_text(best["items"][0]["id"])
    expect(reasons.locator("section th").nth(1)).to_have_text("value")  # several items together may exceed a cosine
    expect(reasons).to_contain_text(f"no match: score {why['no_match_logit']:.2f}")
    names = reasons.locator("h3 bdi").all_inner_texts()  # what stands beside one in another direction keeps its order
    assert label in names
    ask(page, UNKNOWN[0])
    expect(reasons).to_be_hidden()


def test_zeros_are_zeros_and_what_is_said_aloud_is_what_is_shown(page: Page, server: Server) -> None:
    reply = httpx2.get(f"{server.url}/v1/search", params={"text": KNOWN[0][0]}).json()
    best = {"label": "music", "id": None, "probability": 0.1 + 0.2}  # 1 - .7 - .30000000000000004 is not 0
    reply["results"][0] |= {"labels": [best], "no_match": 0.7, "decision": best}
    page.route("**/v1/search", lambda route: route.fulfill(json=reply))
    ask(page, KNOWN[0][0])
    expect(page.locator("#verdict .kind")).to_have_text("Best guess")
    expect(page.locator("#verdict .key")).to_contain_text("other labels 0 %")
    expect(page.locator("#status")).to_have_text("Best guess: music, 30 %.")


def test_reasons_that_come_late_are_not_shown_under_the_next_answer(page: Page) -> None:
    late: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.post_data_json.get("explain") and not late:
            late.append(route)
        else:
            route.continue_()

    page.route("**/v1/search", hold)
    first, second = KNOWN[0], next(entry for entry in KNOWN if entry[1] != KNOWN[0][1])
    ask(page, first[0])
    page.get_by_text("Why?").click()
    expect(page.locator("#reasons")).to_have_text("…")
    while not late:  # the page says so before its request is on its way
        page.wait_for_timeout(10)
    reply = late[0].fetch()
    ask(page, second[0])
    expect(page.locator("#verdict h1")).to_have_text(second[1])
    # the page has let go of the request where nothing hears the reply any longer
    late[0].fulfill(response=reply)
    page.wait_for_timeout(200)
    expect(page.locator("#reasons")).to_be_empty()
    page.get_by_text("Why?").click()
    expect(page.locator("#reasons section h3").first).to_contain_text(second[1])


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
