"""A tiny static encoder and small labelled files, so that tests train for real in a second or two."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TOPICS = {
    "card": ("card", "bank", "pin", "chip", "cash", "wallet"),
    "travel": ("train", "ticket", "hotel", "flight", "seat", "airport"),
    "food": ("soup", "bread", "lemon", "dinner", "cheese", "spoon"),
    "weather": ("rain", "cloud", "storm", "snow", "wind", "sun"),
}
FILLERS = ("the", "my", "please", "about", "where", "is", "a", "some", "again", "today")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random static encoder over the words of `TOPICS`: knows nothing until it is trained."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    words = sorted({*FILLERS, *(word for topic in TOPICS.values() for word in topic)})
    unused = [f"unused{i}" for i in range(20)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, *unused])}, unk_token="the"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\W+"), "removed")
    weights = torch.randn(len(words) + len(unused), 16, generator=torch.Generator().manual_seed(3))
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()])
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def change_weights(encoder: Path) -> None:
    """Another encoder at the same path."""
    (path,) = encoder.rglob("model.safetensors")
    save_file({name: weights + 1 for name, weights in load_file(path).items()}, path)


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` distinct sentences of each topic: one or two of its words among fillers."""
    generator = random.Random(seed)
    rows: dict[str, str] = {}
    for topic, words in TOPICS.items():
        wanted = len(rows) + count
        while len(rows) < wanted:
            chosen = generator.sample(words, 2) + generator.sample(FILLERS, 3)
            generator.shuffle(chosen)
            rows.setdefault(" ".join(chosen), topic)
    return list(rows.items())


Write = Callable[..., Path]


@pytest.fixture
def write_csv(tmp_path: Path) -> Write:
    """Writes (text, label) rows to a CSV file in the test's folder and returns its path."""

    def write(
        rows: Sequence[tuple[str, str]], name: str = "rows.csv", header: tuple[str, str] = ("text", "label")
    ) -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return write


@pytest.fixture(scope="session")
def banking77() -> Path:
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "banking77"
    if not folder.is_dir():
        pytest.skip(f"the data set BANKING77 is not at {folder}")
    return folder
