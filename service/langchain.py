"""A retriever for LangChain (extra `langchain`) that returns nothing when nothing matches.

retriever = SurematchRetriever(client=Client("http://127.0.0.1:8000"), k=4)
documents = retriever.invoke("is it warm in the kitchen")
documents[0].metadata["probability"]
"""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from service.client import Client
from service.schemas.search import AnswerReply, HitReply


class SurematchRetriever(BaseRetriever):
    """Hits of a surematch service as documents; none for a query that the service decides matches nothing.

    A document's content is the item's text, its `id` the item's. Its `metadata` holds `id`, `label`, `score` (cosine),
    `probability` (calibrated, None where the collection is not), `no_match`, `decision` (`label`, `id`, `probability`;
    None where uncalibrated), `calibrated`, and the item's own under `metadata`. Raises `service.client.ServiceProblem`,
    and pydantic's `ValidationError` for settings that there are not, and for a client that is no `Client`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    client: Client
    k: int = 4
    filter: dict[str, Any] | None = None
    keep_no_match: bool = Field(
        default=False, description="return the hits also when the decision is that nothing matches"
    )
    min_probability: float = Field(
        default=0.0, ge=0, le=1, description="leave out hits less probable than this, or without a probability"
    )

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        (answer,) = self.client.search([query], k=self.k, filter=self.filter).results
        if _nothing(answer) and not self.keep_no_match:
            return []
        hits = [hit for hit in answer.hits if (hit.probability or 0.0) >= self.min_probability]
        return [_document(hit, answer) for hit in hits]


def _nothing(answer: AnswerReply) -> bool:
    decision = answer.decision
    return decision is not None and decision.label is None and decision.id is None


def _document(hit: HitReply, answer: AnswerReply) -> Document:
    decision = None if answer.decision is None else answer.decision.model_dump()
    about: dict[str, Any] = {"id": hit.id, "label": hit.label, "score": hit.score, "probability": hit.probability}
    about |= {"no_match": answer.no_match, "decision": decision, "calibrated": answer.calibrated}
    return Document(page_content=hit.text or "", id=hit.id, metadata={**about, "metadata": hit.metadata})
