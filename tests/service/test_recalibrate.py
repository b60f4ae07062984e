"""Feedback over a socket becomes a new calibration, told of and reversible; a reader beside it follows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from index.collection import Collection, NewItem
from service.client import Client, ServiceProblem
from service.schemas.collection import VersionReply
from tests.service.conftest import serving
from tests.service.gallery import KNOWN, UNKNOWN
from tests.service.test_hostile import problem


@pytest.fixture
def folder(collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collection, tmp_path / "home"))


@pytest.fixture
def api(folder: Path) -> Iterator[Client]:
    with serving(folder, "--writable") as server, Client(server.url, timeout=60) as client:
        yield client


def ask_and_tell(api: Client) -> None:
    """A user asks, and says what was right: every test question in two places."""
    texts: list[tuple[str, str | None]] = [*KNOWN, *((text, None) for text in UNKNOWN)]
    texts += [(f"{text} hall", label) for text, label in texts]
    reply = api.search([text for text, _ in texts], k=1)
    assert reply.query_ids is not None
    for query_id, (_, label) in zip(reply.query_ids, texts, strict=True):
        api.feedback(query_id, label)


def test_feedback_over_http_makes_a_calibration_and_the_way_back(api: Client, folder: Path) -> None:
    before = api.calibration()
    with pytest.raises(ServiceProblem, match="at least 50") as refused:
        api.recalibrate()
    assert (refused.value.status, refused.value.slug) == (409, "conflict")
    assert "snapshot" not in str(refused.value), "which would use the feedback that there is"
    ask_and_tell(api)
    made = api.recalibrate()
    assert made.change is not None
    assert made.change["before"]["nll"] > 0
    assert made.change["after"]["ece"] >= 0
    now = api.calibration()
    assert now.version == made.id != before.version
    assert api.search(["hall"]).calibration_id == made.id
    listed = api.calibrations()
    assert (listed.in_use, [entry.id for entry in listed.calibrations]) == (made.id, [before.version, made.id])
    with serving(folder, "--refresh-seconds", "0.05") as reader, Client(reader.url) as other:
        assert other.calibration().version == made.id
        asked = other.search([KNOWN[0][0]]).results
        assert asked == api.search([KNOWN[0][0]]).results
        assert api.use_calibration(str(before.version)).in_use == before.version
        while other.calibration().version != before.version:
            pass
        assert other.search([KNOWN[0][0]]).results != asked
        with pytest.raises(ServiceProblem) as read_only:
            other.recalibrate()
        assert read_only.value.status == 409
    with pytest.raises(ServiceProblem) as nobody:
        api.use_calibration("nobody")
    assert nobody.value.slug == "no-such-calibration"


def test_a_calibration_in_use_that_does_not_fit_any_more_is_listed_as_such(folder: Path) -> None:
    opened = Collection.open(folder, writable=True)
    opened.maintenance.close()
    opened.upsert([NewItem(f"{at}", f"label {at}", "a hall") for at in range(20)])
    own = str(opened.state.calibration_id)
    opened.close()
    with serving(folder) as server, Client(server.url) as api:
        listed = api.calibrations()
        assert (listed.in_use, listed.stale) == (own, [own])
        assert listed.reason == api.calibration().reason
        assert "The calibration was made for" in str(listed.reason)


def test_the_replies_are_the_documents(folder: Path) -> None:
    with serving(folder, "--writable") as server, httpx2.Client(base_url=server.url, timeout=60) as raw:
        listed = raw.get("/v1/admin/calibrations").json()
        VersionReply.model_validate(listed["calibrations"][0], strict=True)
        problem(raw.put("/v1/admin/calibration", json={"id": ""}), "invalid-request")
        problem(raw.put("/v1/admin/calibration", content=b"{}"), "unsupported-media-type")
