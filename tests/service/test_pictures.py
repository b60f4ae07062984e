"""Pictures over HTTP and on the page: a real server on a collection of digits, three of which it has never heard of."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
import torch
from playwright.sync_api import Browser, expect

from index.build import Held, build_collection
from index.data.rows import Row
from index.encoders.image_network import ImageNetwork
from index.encoders.pictures import read_pictures
from service.client import Client
from tests.pictures import digit, mutations, packed, write_digits
from tests.service.conftest import Server, serving

FUZZED = int(os.environ.get("FUZZED_PICTURES", "150"))
"""`make fuzz-images` sends more."""
MEGABYTE = 2**20


def rows(folder: Path, labels: range, scans: range) -> list[Row]:
    return read_pictures([write_digits(folder, labels, scans)], text="text", label="label")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 6 enrolled, calibrated with more of them and with 7 and 8; 9 is a stranger to all of it.

    The network is random: its convolutions tell scans of digits apart well enough, and no training is needed.
    """
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(1)
    network = ImageNetwork(size=24, width=16, dimension=64)
    SentenceTransformer(modules=[network], device="cpu").save_pretrained(
        str(folder / "encoder"), create_model_card=False
    )
    held = Held(rows(folder / "known", range(7), range(30, 45)), rows(folder / "unknown", range(7, 9), range(60)))
    build_collection(
        str(folder / "encoder"), rows(folder / "enrolled", range(7), range(30)), folder / "digits", held=held
    )
    return folder / "digits"


@pytest.fixture(scope="module")
def server(collection: Path) -> Iterator[Server]:
    with serving(collection) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def query(content: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(content).decode()}


def ask(api: httpx2.Client, *contents: bytes) -> httpx2.Response:
    return api.post("/v1/search", json={"queries": [query(content) for content in contents]})


def test_an_enrolled_picture_is_found_and_a_vector_gives_the_same(api: httpx2.Client) -> None:
    reply = ask(api, packed(digit(3, 4)), packed(digit(5, 2), "BMP"))
    assert reply.status_code == 200
    first, second = reply.json()["results"]
    assert (first["hits"][0]["id"], first["hits"][0]["label"], first["hits"][0]["text"]) == ("d3/004.png", "d3", None)
    assert first["hits"][0]["score"] > 0.9999
    assert second["hits"][0]["id"] == "d5/002.png"
    assert first["calibrated"]
    assert first["decision"]["label"] == "d3"


def test_new_scans_are_recognised_and_strangers_are_refused_more_often(api: httpx2.Client) -> None:
    known = ask(api, *(packed(digit(at % 7, 50 + at)) for at in range(35))).json()["results"]
    right = [answer["decision"]["label"] == f"d{at % 7}" for at, answer in enumerate(known)]
    strange = ask(api, *(packed(digit(9, at)) for at in range(35))).json()["results"]
    refused = [answer["decision"]["label"] is None for answer in strange]
    assert sum(right) > 14, "five would be right by chance"
    assert sum(refused) > sum(answer["decision"]["label"] is None for answer in known)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "0 bytes"), (b"GIF89a", "cannot be decoded"), (packed(digit(1, 0))[:-60], "cannot be decoded")],
    ids=["empty", "no-picture", "truncated"],
)
def test_a_faulty_picture_is_named_by_its_place(api: httpx2.Client, content: bytes, why: str) -> None:
    reply = ask(api, packed(digit(1, 0)), content)
    assert reply.status_code == 422
    problem = reply.json()
    assert problem["type"] == "/problems/invalid-request"
    assert why in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/queries/1/image"
    assert problem["errors"][0]["detail"].startswith("The picture ")
    assert problem["detail"].startswith("/queries/1/image: The picture ")


def test_several_frames_bombs_and_texts_are_refused(api: httpx2.Client) -> None:
    moving = packed(digit(1, 0), "GIF", save_all=True, append_images=[digit(2, 0)])
    assert ask(api, moving).status_code == 422
    wide = packed(digit(1, 0).resize((7000, 7000)), "PNG")
    assert "7000 x 7000 pixels" in ask(api, wide).json()["detail"]
    reply = api.post("/v1/search", json={"queries": [{"text": "hello"}]})
    assert reply.status_code == 422
    assert "cannot be asked with a text" in reply.json()["detail"]
    reply = api.post("/v1/search", json={"queries": [{"image": "no base64!"}]})
    assert reply.json()["errors"][0]["pointer"] == "/queries/0/image"


def test_damaged_pictures_never_shake_the_service(api: httpx2.Client, server: Server) -> None:
    """No 5xx, the same process afterwards, memory bounded, and sound pictures answered as before."""
    process = psutil.Process(server.process.pid)
    before = ask(api, packed(digit(3, 4))).json()["results"]
    resting = process.memory_info().rss
    answered = 0
    for content in mutations(FUZZED, seed=7):
        reply = ask(api, content)
        assert reply.status_code in (200, 422), f"{reply.status_code} for {content[:80]!r}... of {len(content)} bytes"
        answered += reply.status_code == 200
    assert answered > 0
    assert server.process.poll() is None
    assert process.memory_info().rss - resting < 700 * MEGABYTE
    assert ask(api, packed(digit(3, 4))).json()["results"] == before


def test_pictures_are_enrolled_over_http_found_and_not_kept(collection: Path, tmp_path: Path) -> None:
    folder, log = Path(shutil.copytree(collection, tmp_path / "written")), tmp_path / "audit.jsonl"
    new = {"id": "nine", "label": "d9", "image": query(packed(digit(9, 3)))["image"]}
    with (
        serving(folder, "--writable", "--audit-log", str(log)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as api,
    ):
        assert api.put("/v1/items", json={"items": [new]}).json()["written"] == 1
        (answer,) = ask(api, packed(digit(9, 3))).json()["results"]
        assert (answer["hits"][0]["id"], answer["hits"][0]["text"]) == ("nine", None)
        assert answer["hits"][0]["score"] > 0.9999
        assert api.get("/v1/items/nine").json() == {"id": "nine", "label": "d9", "text": None, "metadata": {}}
        with Client(server.url) as typed:  # the same by the client, which takes the bytes
            typed.put_items([new | {"id": "nine", "image": packed(digit(9, 3))}])
            (hit, *_) = typed.search([packed(digit(9, 3))]).results[0].hits
        assert (hit.id, hit.label) == ("nine", "d9")
        broken = {"id": "broken", "image": query(packed(digit(1, 0))[:-60])["image"]}
        reply = api.put("/v1/items", json={"items": [new | {"id": "other"}, broken]})
        assert reply.status_code == 422
        assert "Item 'broken': The picture cannot be decoded" in reply.json()["detail"]
        assert api.get("/v1/items/other").status_code == 404, "all or none"
        for wrong in ({"text": "nine"}, {"vector": [1.0]}, {"image": "no base64!"}):
            assert api.put("/v1/items", json={"items": [new | wrong]}).status_code == 422
    written = log.read_text()
    assert [json.loads(line)["event"] for line in written.splitlines()] == [
        *("enrol", "search", "enrol", "search", "enrol", "failed")
    ]
    picture = packed(digit(9, 3))
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert picture not in content
        assert base64.b64encode(picture) not in content


# ---- the page


DROP = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.getElementById("drop").dispatchEvent(event);
}"""

DROP_BOTH = """async (contents) => {
  const files = contents.map(([name, content, more]) => new File(
    [Uint8Array.from(atob(content), (c) => c.charCodeAt(0)), new Uint8Array(more)], name, { type: "image/png" }));
  for (const file of files) {
    const transfer = new DataTransfer();
    transfer.items.add(file);
    const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.getElementById("drop").dispatchEvent(event);
  }
  for (const file of files) {  // what the page reads itself has been read before
    const reader = new FileReader();
    await new Promise((done) => { reader.onload = done; reader.readAsDataURL(file); });
  }
}"""


def test_of_pictures_dropped_one_after_another_the_last_is_answered(browser: Browser, server: Server) -> None:
    page = browser.new_context(base_url=server.url).new_page()
    page.goto("/")
    expect(page.locator("#drop")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    large = ["large.png", base64.b64encode(packed(digit(3, 4))).decode(), 5_000_000]
    small = ["small.png", base64.b64encode(packed(digit(5, 2))).decode(), 0]
    page.evaluate(DROP_BOTH, [large, small])
    page.wait_for_load_state("networkidle")
    expect(page.locator("#hits .text").first).to_have_text("d5/002.png")
    expect(page.locator("#shown")).to_have_attribute("alt", "The picture asked about: small.png")
    assert len([url for url in asked if url.endswith("/v1/search")]) == 1
    page.context.close()


def test_a_file_that_cannot_be_read_is_said_to_be_so(browser: Browser, server: Server) -> None:
    page = browser.new_context(base_url=server.url).new_page()
    page.goto("/")
    expect(page.locator("#drop")).to_be_visible()
    with page.expect_response("**/v1/search"):
        page.evaluate(DROP, ["three.png", "image/png", base64.b64encode(packed(digit(3, 4))).decode()])
    expect(page.locator("#answer")).to_be_visible()
    # as of a folder, or a file that was removed since it was chosen
    page.evaluate("""FileReader.prototype.readAsDataURL = function () {
      setTimeout(() => this.dispatchEvent(new ProgressEvent("error")));
    }""")
    page.evaluate(DROP, ["folder", "", "eA=="])
    expect(page.locator("#problem")).to_contain_text("The file cannot be read")
    expect(page.locator("#shown")).to_have_count(0)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    page.context.close()


def test_a_dropped_picture_is_matched_and_a_stranger_is_not(
    browser: Browser, server: Server, api: httpx2.Client
) -> None:
    strange = next(
        content
        for content in (packed(digit(9, at)) for at in range(60))
        if ask(api, content).json()["results"][0]["decision"]["label"] is None
    )
    page = browser.new_context(base_url=server.url).new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto("/")
    expect(page.locator("#drop")).to_be_visible()
    expect(page.locator("#ask-text")).to_be_hidden()

    def drop(name: str, content: bytes, kind: str = "image/png") -> None:
        with page.expect_response("**/v1/search"):
            page.evaluate(DROP, [name, kind, base64.b64encode(content).decode()])

    drop("three.png", packed(digit(3, 4)))
    expect(page.locator("#verdict .kind")).to_have_text("Match")
    expect(page.locator("#verdict h1")).to_have_text("d3")
    expect(page.locator("#verdict .percent")).to_have_text(re.compile(r"^[\d.> ]+ %$"))
    expect(page.locator("#hits .text").first).to_have_text("d3/004.png")
    assert page.locator("#shown").evaluate("node => node.complete && node.naturalWidth") == 32

    drop("nine.png", strange)
    expect(page.locator("#verdict .kind")).to_have_text("No match")

    page.evaluate(DROP, ["empty.png", "image/png", ""])
    expect(page.locator("#problem")).to_contain_text("The file is empty")
    expect(page.locator("#answer")).to_be_hidden()

    with page.expect_response("**/v1/search"):
        page.set_input_files(
            "#file", {"name": "five.bmp", "mimeType": "image/bmp", "buffer": packed(digit(5, 2), "BMP")}
        )
    expect(page.locator("#hits .text").first).to_have_text("d5/002.png")

    drop("broken.png", b"no picture")
    expect(page.locator("#problem")).to_contain_text("cannot be decoded")
    expect(page.locator("#status")).to_be_empty()
    drop("large.png", packed(digit(3, 4)) + bytes(9_000_000))
    expect(page.locator("#problem")).to_contain_text("The body is too large")
    expect(page.locator("#problem")).to_contain_text("The limit is 8,388,608 bytes a request. Send less at once")
    expect(page.locator("#problem")).to_contain_text("a smaller picture")
    assert [fault for fault in faults if "422" not in fault and "413" not in fault] == []
    page.context.close()


def test_the_question_to_a_collection_of_texts_is_not_put_to_one_of_pictures(
    browser: Browser, collection: Path, uncalibrated: Path
) -> None:
    with serving(Path(f"texts={uncalibrated}"), f"pictures={collection}") as server:
        page = browser.new_page(base_url=server.url)
        page.goto("/")
        chosen = page.get_by_label("Collection")
        with page.expect_response("**/search"):
            page.fill("#text", "turn on the light")
            page.press("#text", "Enter")
        expect(page.locator("#answer")).to_be_visible()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        with page.expect_navigation():
            chosen.select_option("pictures")
        expect(page.locator("#drop")).to_be_visible()
        expect(page.locator("#served")).to_contain_text("items")
        page.evaluate("location.hash = 'q=dark'")  # nor is one that is written into the address
        page.wait_for_timeout(200)
        assert [url for url in asked if url.endswith("/search")] == []
        expect(page.locator("#welcome")).to_be_visible()
        expect(page.locator("#problem")).to_be_hidden()
        with page.expect_navigation():  # of texts again: it is asked there, as the address says
            chosen.select_option("texts")
        expect(page.locator("#text")).to_have_value("dark")
        expect(page.locator("#answer")).to_be_visible()
        page.close()
