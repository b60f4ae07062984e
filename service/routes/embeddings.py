"""`/v1/embeddings` and `/v1/models`, as OpenAI's clients expect them: the collection's encoder for other programs."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request, Response

from service.problems import Fault, Problem, documented
from service.routes.state import JSON_BODY, body_of, json_body, json_response, serving_of, validated
from service.schemas.embeddings import EmbeddingsReply, EmbeddingsRequest, ModelsReply
from service.serving.collection import Serving

router = APIRouter(prefix="/v1", tags=["embeddings"])


@router.post(
    "/embeddings",
    summary="Vectors of texts",
    response_model=EmbeddingsReply,
    responses={**JSON_BODY, **documented("busy", "too-slow", "not-ready")},
    openapi_extra=body_of("EmbeddingsRequest"),
)
async def embeddings(request: Request) -> Response:
    """Unit vectors of the collection's own encoder, OpenAI-compatible. A text's vector can betray the text."""
    asked = validated(EmbeddingsRequest, await json_body(request))
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    with serving_of(request) as serving:
        faults = _faults(request, serving, asked, texts)
        if faults:
            raise Problem("invalid-request", f"{faults[0].pointer}: {faults[0].detail}.", faults)
        vectors = await serving.searcher.embed(texts)

    def shown(vector: Any) -> Any:
        if asked.encoding_format == "float":
            return vector
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()

    data = [{"object": "embedding", "index": at, "embedding": shown(vector)} for at, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return json_response({"object": "list", "data": data, "model": serving.collection.model_id, "usage": usage})


def _faults(request: Request, serving: Serving, asked: EmbeddingsRequest, texts: list[str]) -> list[Fault]:
    settings, collection = request.app.state.settings, serving.collection
    faults = []
    if asked.model not in (serving.name, collection.model_id, collection.encoder.fingerprint):
        faults.append(Fault("/model", f"expected {serving.name} or {collection.model_id}, what is served here"))
    if asked.dimensions not in (None, collection.encoder.dimension):
        faults.append(Fault("/dimensions", f"expected {collection.encoder.dimension}, the model's dimension"))
    if len(texts) > settings.max_queries:
        faults.append(Fault("/input", f"got {len(texts)} texts, the limit is {settings.max_queries}"))
    for at, text in enumerate(texts[: settings.max_queries]):
        where = "/input" if isinstance(asked.input, str) else f"/input/{at}"
        if not text.strip():
            faults.append(Fault(where, "the text is empty; give at least one visible character"))
        elif len(text) > settings.max_text_chars:
            faults.append(Fault(where, f"the text has more than {settings.max_text_chars} characters"))
    return faults[:20]


@router.get(
    "/models", summary="Models of /v1/embeddings", response_model=ModelsReply, responses=documented("not-ready")
)
async def models(request: Request) -> Response:
    """The names that `model` of /v1/embeddings can have."""
    with serving_of(request) as serving:
        collection = serving.collection
    names = dict.fromkeys((serving.name, collection.model_id))
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": "surematch"} for name in names]
    return json_response({"object": "list", "data": entries})
