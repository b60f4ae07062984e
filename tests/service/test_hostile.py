"""Bodies nobody should send: each is refused with a problem, never a 500, never repeated, and the service lives on."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.service.conftest import Server, serving

JSON = {"Content-Type": "application/json"}
GOOD = b'{"queries":[{"text":"turn on the kitchen light"}]}'
MARK = b"do-not-repeat-me"

NOT_JSON = {
    "empty": b"",
    "spaces": b"   ",
    "half": b'{"queries":[',
    "two": GOOD + GOOD,
    "single-quotes": b"{'queries':[]}",
    "trailing-comma": b'{"queries":[{"text":"x"},]}',
    "comment": b'{"queries":[{"text":"x"}]} // no',
    "byte-order-mark": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "invalid-utf-8": b'{"queries":[{"text":"\xff\xfe"}]}',
    "overlong-utf-8": b'{"queries":[{"text":"\xc0\xaf"}]}',
    "lone-high-surrogate": b'{"queries":[{"text":"\\ud800"}]}',
    "lone-low-surrogate": b'{"queries":[{"text":"\\udc00 x"}]}',
    "surrogate-bytes": b'{"queries":[{"text":"\xed\xa0\x80"}]}',
    "surrogate-name": b'{"\\ud800":1}',
    "control-character": b'{"queries":[{"text":"a\x00b"}]}',
    "deep-lists": b"[" * 100_000,
    "deep-objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep-metadata": b'{"queries":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "huge-integer": b'{"queries":[{"text":"x"}],"k":' + b"9" * 100_000 + b"}",
    "nan-word": b'{"queries":[{"text":"x"}],"coverage":nan}',
    "form": b"text=hello&k=3",
    "zeros": b"\x00" * 1000,
}

INVALID = {
    "null": (b"null", ""),
    "list": (b"[]", ""),
    "string": (b'"' + MARK + b'"', ""),
    "no-queries": (b"{}", "/queries"),
    "queries-null": (b'{"queries":null}', "/queries"),
    "queries-empty": (b'{"queries":[]}', "/queries"),
    "queries-object": (b'{"queries":{"text":"x"}}', "/queries"),
    "query-string": (b'{"queries":["' + MARK + b'"]}', "/queries/0"),
    "query-empty": (b'{"queries":[{}]}', "/queries/0"),
    "query-two-kinds": (b'{"queries":[{"text":"x","vector":[1]}]}', "/queries/0"),
    "query-unknown": (b'{"queries":[{"text":"x","weight":1}]}', "/queries/0/weight"),
    "second-query": (b'{"queries":[{"text":"x"},{"text":5}]}', "/queries/1/text"),
    "text-empty": (b'{"queries":[{"text":""}]}', "/queries/0/text"),
    "text-blank": (b'{"queries":[{"text":" \\n\\t\\u3000"}]}', "/queries/0/text"),
    "text-null": (b'{"queries":[{"text":null}]}', "/queries/0/text"),
    "text-number": (b'{"queries":[{"text":1}]}', "/queries/0/text"),
    "text-long": (b'{"queries":[{"text":"' + MARK * 1000 + b'"}]}', "/queries/0/text"),
    "image": (b'{"queries":[{"image":"no base64"}]}', "/queries/0/image"),
    "vector-empty": (b'{"queries":[{"vector":[]}]}', "/queries/0/vector"),
    "vector-nan": (b'{"queries":[{"vector":[1,NaN]}]}', "/queries/0/vector/1"),
    "vector-infinity": (b'{"queries":[{"vector":[-Infinity]}]}', "/queries/0/vector/0"),
    "vector-overflow": (b'{"queries":[{"vector":[1e999]}]}', "/queries/0/vector/0"),
    "vector-strings": (b'{"queries":[{"vector":["1"]}]}', "/queries/0/vector/0"),
    "vector-booleans": (b'{"queries":[{"vector":[true]}]}', "/queries/0/vector/0"),
    "vector-nested": (b'{"queries":[{"vector":[[1]]}]}', "/queries/0/vector/0"),
    "vector-long": (b'{"queries":[{"vector":[' + b"1," * 20_000 + b"1]}]}", "/queries/0/vector"),
    "k-string": (b'{"queries":[{"text":"x"}],"k":"5"}', "/k"),
    "k-float": (b'{"queries":[{"text":"x"}],"k":5.0}', "/k"),
    "k-true": (b'{"queries":[{"text":"x"}],"k":true}', "/k"),
    "k-nan": (b'{"queries":[{"text":"x"}],"k":NaN}', "/k"),
    "k-zero": (b'{"queries":[{"text":"x"}],"k":0}', "/k"),
    "k-negative": (b'{"queries":[{"text":"x"}],"k":-1}', "/k"),
    "k-large": (b'{"queries":[{"text":"x"}],"k":1000001}', "/k"),
    "k-beyond-64-bits": (b'{"queries":[{"text":"x"}],"k":99999999999999999999}', "/k"),
    "coverage-one": (b'{"queries":[{"text":"x"}],"coverage":1}', "/coverage"),
    "coverage-nan": (b'{"queries":[{"text":"x"}],"coverage":NaN}', "/coverage"),
    "coverage-string": (b'{"queries":[{"text":"x"}],"coverage":"0.9"}', "/coverage"),
    "map-unknown": (b'{"queries":[{"text":"x"}],"map":"' + MARK + b'"}', "/map"),
    "map-two": (b'{"queries":[{"text":"x"}],"map":{"entmax":1.5,"taylor":2}}', "/map"),
    "map-odd-taylor": (b'{"queries":[{"text":"x"}],"map":{"taylor":3}}', "/map"),
    "map-taylor-never-fitted": (b'{"queries":[{"text":"x"}],"map":{"taylor":4}}', "/map"),
    "map-alpha": (b'{"queries":[{"text":"x"}],"map":{"entmax":0.5}}', "/map"),
    "filters": (b'{"queries":[{"text":"x"}],"filters":{"a":1}}', "/filters"),
    "filter-list": (b'{"queries":[{"text":"x"}],"filter":[]}', "/filter"),
    "filter-nan": (b'{"queries":[{"text":"x"}],"filter":{"a":NaN}}', "/filter"),
    "unknown-name": (b'{"queries":[{"text":"x"}],"a/b~c":1}', "/a~1b~0c"),
    "long-name": (b'{"queries":[{"text":"x"}],"' + MARK * 1000 + b'":1}', None),
    "many-queries": (b'{"queries":[' + b'{"text":"x"},' * 50 + b'{"text":"x"}]}', "/queries"),
    "very-many-queries": (b'{"queries":[' + b"{}," * 300_000 + b"{}]}", "/queries"),
}


def problem(reply: httpx2.Response, slug: str) -> dict[str, object]:
    body = reply.json()
    assert reply.headers["content-type"] == "application/problem+json", body
    assert body["type"] == f"/problems/{slug}", body
    assert body["status"] == reply.status_code
    assert body["title"]
    assert body["detail"]
    assert len(reply.content) < 20_000
    return body


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_refused(api: httpx2.Client, body: bytes) -> None:
    reply = api.post("/v1/search", content=body, headers=JSON)
    assert reply.status_code == 422
    problem(reply, "not-json")


@pytest.mark.parametrize(("body", "pointer"), INVALID.values(), ids=INVALID)
def test_an_invalid_request_names_the_place_and_repeats_nothing(
    api: httpx2.Client, body: bytes, pointer: str | None
) -> None:
    reply = api.post("/v1/search", content=body, headers=JSON)
    assert reply.status_code == 422
    found = problem(reply, "invalid-request")["errors"]
    assert isinstance(found, list)
    assert 1 <= len(found) <= 20
    assert pointer is None or pointer in [fault["pointer"] for fault in found], found
    assert MARK * 20 not in reply.content
    assert pointer is None or MARK not in reply.content


def test_the_message_for_an_unknown_member_names_it(api: httpx2.Client) -> None:
    reply = api.post("/v1/search", json={"queries": [{"text": "x"}], "filters": {}})
    assert "'filters'" in reply.json()["detail"]


@pytest.mark.parametrize(
    "wrong", [{"a": {"near": 1}}, {"and": 1}, {"a": {"in": 5}}, {"not": {"a": {"gt": []}}}], ids=str
)
def test_a_wrong_filter_is_refused_with_its_place(api: httpx2.Client, wrong: dict[str, object]) -> None:
    reply = api.post("/v1/search", json={"queries": [{"text": "x"}], "filter": wrong})
    assert reply.status_code == 422
    assert "filter." in str(problem(reply, "invalid-request")["detail"])


def test_a_picture_is_told_that_the_collection_holds_text(api: httpx2.Client) -> None:
    reply = api.post("/v1/search", json={"queries": [{"image": "aGk="}]})
    assert "holds texts" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("vector", "says"),
    [([1.0, 0.0], "expected 32"), ([0.0] * 32, ""), ([1e39] * 32, ""), ([1e-320] * 32, ""), ([1.0] * 32, "norm")],
    ids=["dimension", "zero", "beyond-float32", "below-float32", "length"],
)
def test_a_vector_that_cannot_be_searched_is_refused(api: httpx2.Client, vector: list[float], says: str) -> None:
    reply = api.post("/v1/search", json={"queries": [{"vector": vector}]})
    assert reply.status_code == 422, reply.text
    assert says in str(problem(reply, "invalid-request")["detail"])


@pytest.mark.parametrize(
    "query",
    [
        "", "k=3", "text=", "text=%20", "text=a&text=b", "text=a&k=5.0", "text=a&k=-1", "text=a&k=0", "text=a&k=%D9%A3",
        "text=a&k=1e3", "text=a&k=" + "9" * 5000, "text=a&q=b", "text=%ff", "text=%ed%a0%80", "text=a&map=nope",
        "text=a&map=entmax:0.2", "text=a&map=entmax:x", "text=a&map=:2", "text=a&coverage=2", "text=a&coverage=nan",
        "text=a&coverage=inf", "text=a&coverage=", "text=a&" + "&".join(f"x{n}=1" for n in range(50)),
        "text=" + "a" * 20_000,
    ],
)  # fmt: skip
def test_a_wrong_query_string_is_refused(api: httpx2.Client, query: str) -> None:
    reply = api.get(f"/v1/search?{query}")
    assert reply.status_code == 422, reply.text
    problem(reply, "invalid-request")


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml", "\xe4"],
)
def test_other_content_types_are_refused(api: httpx2.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type.encode("latin-1")} if content_type else {}
    reply = api.post("/v1/search", content=GOOD, headers=headers)  # type: ignore[arg-type]
    assert reply.status_code == 415
    problem(reply, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_content_types_are_taken(api: httpx2.Client, content_type: str) -> None:
    assert api.post("/v1/search", content=GOOD, headers={"Content-Type": content_type}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/web/../app.py", 404, "not-found"),
        ("GET", "/web/%2e%2e/app.py", 404, "not-found"),
        ("GET", "/problems/nothing", 404, "not-found"),
        ("GET", "/v1/search/?text=lamp", 404, "not-found"),
        ("DELETE", "/v1/search", 405, "method-not-allowed"),
        ("POST", "/healthz", 405, "method-not-allowed"),
    ],
)
def test_unknown_addresses_and_methods(api: httpx2.Client, method: str, path: str, status: int, slug: str) -> None:
    reply = api.request(method, path)
    assert reply.status_code == status
    problem(reply, slug)
    if status == 405:
        assert reply.headers["allow"]


def test_a_large_body_is_refused_before_it_is_parsed(api: httpx2.Client, server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    reply = api.post("/v1/search", content=b'{"queries":"' + b"x" * 100_000_000 + b'"}', headers=JSON)
    assert reply.status_code == 413
    assert "1,000,000 bytes" in str(problem(reply, "body-too-large")["detail"])
    assert process.memory_info().rss - before < 50 * 2**20


def test_a_large_chunked_body_is_refused_too(api: httpx2.Client, server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    reply = api.post("/v1/search", content=(b"x" * 65_536 for _ in range(1500)), headers=JSON)
    assert reply.status_code == 413
    problem(reply, "body-too-large")
    assert process.memory_info().rss - before < 50 * 2**20


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_all_before_reading_is_told_why_it_is_too_large(server: Server, chunked: bool) -> None:
    """As urllib does, with `Connection: close`: no reset in place of the answer."""
    content = b"x" * 20_000_000
    body = iter([content]) if chunked else content
    asked = urllib.request.Request(f"{server.url}/v1/search", body, JSON)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == 413
    detail = json.loads(refused.value.read())["detail"]
    assert "1,000,000 bytes" in detail
    assert "a smaller picture" in detail
    assert "--max-body-bytes" in detail


def test_what_is_refused_is_not_read_for_ever(collection: Path) -> None:
    """The answer is there at once, and its end after the time that a body may take."""
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 999999999\r\n\r\n"
    with (
        serving(collection, "--receive-seconds", "1") as server,
        socket.create_connection(server.address, timeout=20) as connection,
    ):
        began = time.monotonic()
        connection.sendall(head + b"x" * 1000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - began < 0.9
        while connection.recv(4096):
            pass
        assert 0.9 < time.monotonic() - began < 10


def test_who_keeps_a_connection_cannot_go_on_sending_what_was_refused(collection: Path) -> None:
    """Neither byte by byte, each before the connection would be idle, nor as much as it can."""
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    with serving(collection, "--receive-seconds", "1") as server:
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(head)
            assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
            sent = 0
            with suppress(OSError):  # the other end is closed
                for sent in range(40):  # noqa: B007
                    connection.sendall(b"x")
                    time.sleep(0.25)
            assert 2 < sent < 39
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(head)
            sent = 0
            with suppress(OSError):
                while sent < 10**9:
                    sent += connection.send(b"x" * 2**20)
            assert sent < 4 * 2**26


def test_without_a_file_descriptor_left_connections_wait_and_the_log_stays_small(collection: Path) -> None:
    with serving(collection) as server, ExitStack() as stack:
        process = psutil.Process(server.process.pid)
        limit = process.num_fds() + 20
        process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
        for _ in range(60):
            stack.enter_context(socket.create_connection(server.address))
        assert server.process.stdout
        assert "out of system resource" in server.process.stdout.readline()
        stack.close()
        assert httpx2.get(f"{server.url}/healthz", timeout=20).status_code == 200
        server.process.terminate()
        assert server.process.stdout.read().count("out of system resource") < 20


def test_a_connection_goes_on_after_a_refusal_whose_body_was_sent(server: Server) -> None:
    get = b"GET /v1/collection HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    post = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n"
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(post + b"x" * 2_000_000 + get)
        content = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert content.startswith(b"HTTP/1.1 413 ")
    assert b"HTTP/1.1 200 " in content


def test_a_body_of_exactly_the_limit_is_read(api: httpx2.Client) -> None:
    padding = b" " * (1_000_000 - len(GOOD))
    assert api.post("/v1/search", content=GOOD + padding, headers=JSON).status_code == 200
    assert api.post("/v1/search", content=GOOD + padding + b" ", headers=JSON).status_code == 413


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /v1/search?text=\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=[
        "garbage",
        "version",
        "negative-length",
        "word-length",
        "bad-chunk",
        "smuggled",
        "path",
        "header",
        "raw-query",
        "tls",
    ],
)
def test_broken_http_never_makes_a_500(server: Server, api: httpx2.Client, raw: bytes) -> None:
    with socket.create_connection(server.address, timeout=2) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except OSError:
            answer = b""
    assert b" 500 " not in answer.partition(b"\r\n")[0]
    assert api.post("/v1/search", content=GOOD, headers=JSON).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[::2]"])
def test_another_name_for_loopback_is_refused(api: httpx2.Client, host: str) -> None:
    reply = api.get("/v1/collection", headers={"Host": host})
    assert reply.status_code == 421
    problem(reply, "unknown-host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000"])
def test_loopback_s_own_names_are_answered(api: httpx2.Client, host: str) -> None:
    assert api.get("/v1/collection", headers={"Host": host}).status_code == 200


ELSEWHERE: dict[str, dict[str, str]] = {
    "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "an old browser": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
    "a sandbox": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "no origin": {"Sec-Fetch-Site": "cross-site"},
}


@pytest.mark.parametrize("said", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_page_of_another_site_changes_nothing(api: httpx2.Client, said: dict[str, str]) -> None:
    for path in ("/v1/admin/reload", "/v1/admin/snapshot", "/v1/search"):
        refused = api.post(path, headers={"Content-Type": "text/plain", **said})
        assert refused.status_code == 403
        problem(refused, "cross-site")
    assert api.get("/v1/collection", headers=said).status_code == 200  # a link to the page; its answers stay unread


def test_a_browser_of_another_site_is_told_from_the_page(api: httpx2.Client) -> None:
    own = {"Origin": str(api.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert api.post("/v1/search", content=GOOD, headers={**JSON, **own}).status_code == 200
    assert api.post("/v1/search", content=GOOD, headers={**JSON, "Sec-Fetch-Site": "none"}).status_code == 200


def read_to_end(connection: socket.socket) -> int:
    """How many bytes come."""
    count = 0
    while part := connection.recv(1 << 20):
        count += len(part)
    return count


def test_who_takes_nothing_of_an_answer_is_let_go_and_who_takes_it_slowly_is_not(collection: Path) -> None:
    asked = json.dumps({"queries": [{"text": "mute speaker hall"}] * 256, "k": 100, "explain": True}).encode()
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(asked) + asked
    with serving(collection, "--receive-seconds", "1") as server, socket.socket() as never, socket.socket() as slow:
        for connection in (never, slow):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect(server.address)
            connection.sendall(whole)
            taken = connection.recv(1)  # one after the other: together they would be too many queries
        for _ in range(24):  # four times as long as is waited for somebody who takes nothing
            taken += slow.recv(3000)
            time.sleep(0.25)
        said, _, begun = taken.partition(b"\r\n\r\n")
        length = int(said.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert length > 5_000_000  # more than the kernel takes
        assert len(begun) + read_to_end(slow) == length
        with pytest.raises(ConnectionError):  # reset: the rest is not there any more
            read_to_end(never)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_monitors_may_ask_for_the_head_alone(api: httpx2.Client, path: str) -> None:
    for _ in range(2):  # a body would be taken for the next answer on this connection
        reply = api.head(path)
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["content-length"] == api.get(path).headers["content-length"]
    assert "HEAD" in api.post(path).headers["allow"]


def test_the_service_says_nothing_about_its_inside(api: httpx2.Client) -> None:
    reply = api.get("/healthz")
    assert "server" not in reply.headers
    assert json.loads(reply.content) == {"status": "ok"}
