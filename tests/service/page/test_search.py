"""The search page in a real browser: what it shows, that data never runs, that keyboard and phone work."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.service.conftest import Server, serving
from tests.service.gallery import KNOWN, UNKNOWN, XSS_LABEL, XSS_TEXT
from tests.service.page.helpers import PHONE, ask


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
