"""Small things the tests of this room share: unit vectors, and a static encoder written without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

Vectors = NDArray[np.float32]

TOPICS = {
    "card": ("card", "bank", "pin", "chip", "cash", "wallet"),
    "travel": ("train", "ticket", "hotel", "flight", "seat", "airport"),
    "food": ("soup", "bread", "lemon", "dinner", "cheese", "spoon"),
    "weather": ("rain", "cloud", "storm", "snow", "wind", "sun"),
    "music": ("song", "album", "guitar", "drum", "melody", "concert"),
}
FILLERS = ("the", "my", "please", "about", "where", "is", "a", "some", "again", "today")


def unit(count: int, dimension: int, seed: int = 0) -> Vectors:
    """`count` random directions."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_static(folder: Path, seed: int = 3, prompt: str | None = None) -> Path:
    """A static encoder of 16 dimensions in which the words of one topic lie near each other."""
    words = ["<unk>", *FILLERS, *(word for topic in TOPICS.values() for word in topic)]
    random = np.random.default_rng(seed)
    weights = 0.3 * random.standard_normal((len(words), 16))
    for topic in TOPICS.values():
        centre = random.standard_normal(16)
        for word in topic:
            weights[words.index(word)] = centre + 0.8 * random.standard_normal(16)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    save_file({"embedding.weight": weights.astype(np.float32)}, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    kinds = ("static_embedding.StaticEmbedding", "normalize.Normalize")
    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": "" if at == 0 else f"{at}_Normalize",
            "type": f"sentence_transformers.sentence_transformer.modules.{kind}",
        }
        for at, kind in enumerate(kinds)
    ]
    (folder / "1_Normalize").mkdir()
    (folder / "1_Normalize" / "config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps(modules))
    config = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": prompt or "", "document": ""},
        "default_prompt_name": "query" if prompt else None,
        "similarity_fn_name": "cosine",
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    return folder


def sentences(count: int, topics: Sequence[str] = tuple(TOPICS), seed: int = 0) -> list[tuple[str, str]]:
    """`count` distinct (text, label) pairs of each topic: two of its words among fillers."""
    random = np.random.default_rng(seed)
    rows: dict[str, str] = {}
    for topic in topics:
        wanted = len(rows) + count
        while len(rows) < wanted:
            chosen = [*random.choice(TOPICS[topic], 2), *random.choice(FILLERS, 3)]
            rows.setdefault(" ".join(random.permutation(chosen)), topic)
    return list(rows.items())
