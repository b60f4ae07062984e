"""The LangChain retriever against a real service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from service.client import Client, ServiceProblem
from service.langchain import SurematchRetriever
from tests.service.conftest import Server, serving
from tests.service.gallery import KNOWN, UNKNOWN


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def test_documents_carry_score_probability_and_decision(client: Client) -> None:
    found = SurematchRetriever(client=client, k=3).invoke(KNOWN[0][0])
    answer = client.search([KNOWN[0][0]], k=3).results[0]
    assert [document.id for document in found] == [hit.id for hit in answer.hits]
    assert [document.page_content for document in found] == [hit.text for hit in answer.hits]
    for document, hit in zip(found, answer.hits, strict=True):
        about = document.metadata
        assert (about["score"], about["probability"], about["label"]) == (hit.score, hit.probability, hit.label)
        assert about["decision"]["label"] == KNOWN[0][1]
        assert about["no_match"] == answer.no_match
        assert about["metadata"] == hit.metadata


def test_a_no_match_is_no_document_unless_asked_for(client: Client) -> None:
    assert SurematchRetriever(client=client).invoke(UNKNOWN[0]) == []
    kept = SurematchRetriever(client=client, keep_no_match=True).invoke(UNKNOWN[0])
    assert len(kept) == 4
    assert kept[0].metadata["decision"]["label"] is None


def test_improbable_hits_can_be_left_out(client: Client) -> None:
    all_of = SurematchRetriever(client=client, k=20).invoke(KNOWN[0][0])
    likely = SurematchRetriever(client=client, k=20, min_probability=0.5).invoke(KNOWN[0][0])
    assert 0 < len(likely) < len(all_of)
    assert {document.metadata["label"] for document in likely} == {KNOWN[0][1]}


def test_it_is_a_part_of_a_chain_async_too(client: Client) -> None:
    def first(documents: list[Document]) -> str:
        return documents[0].metadata["label"] if documents else "nothing"

    chain = SurematchRetriever(client=client) | RunnableLambda(first)
    assert chain.invoke(KNOWN[0][0]) == KNOWN[0][1]
    assert asyncio.run(chain.ainvoke(UNKNOWN[0])) == "nothing"
    assert chain.batch([KNOWN[0][0], UNKNOWN[0]]) == [KNOWN[0][1], "nothing"]


def test_without_a_calibration_there_is_no_probability(uncalibrated: Path) -> None:
    with serving(uncalibrated) as server, Client(server.url) as other:
        (document, *_) = SurematchRetriever(client=other).invoke(KNOWN[0][0])
        assert document.metadata["probability"] is document.metadata["decision"] is None
        assert document.metadata["calibrated"] is False
        assert SurematchRetriever(client=other, min_probability=0.01).invoke(KNOWN[0][0]) == []


@pytest.mark.parametrize("wrong", [{"keep_nomatch": True}, {"fliter": {"a": 1}}, {"client": "http://127.0.0.1:8000"}])
def test_settings_that_there_are_not_are_refused(client: Client, wrong: dict[str, Any]) -> None:
    """A misspelt filter would show everything."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SurematchRetriever(**{"client": client, **wrong})


def test_a_refusal_is_raised(client: Client) -> None:
    with pytest.raises(ServiceProblem, match="empty"):
        SurematchRetriever(client=client).invoke(" ")
