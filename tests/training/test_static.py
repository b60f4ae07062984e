from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from training.parts.static import only_used_tokens, unreadable

TEXTS = ["my card", "the rain again", "soup please", "cash is rain"]


def steps(model: SentenceTransformer) -> None:
    """A few Adam steps that pull texts towards fixed directions."""
    targets = torch.eye(16)[:4]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        vectors = model(model.preprocess(TEXTS))["sentence_embedding"]
        functional.mse_loss(vectors, targets).backward()
        optimizer.step()


def test_training_only_the_used_tokens_gives_the_same_weights_bit_for_bit(tiny_encoder: Path) -> None:
    whole, cut = (SentenceTransformer(str(tiny_encoder), device="cpu") for _ in range(2))
    start = whole[0].embedding.weight.detach().clone()
    steps(whole)
    with only_used_tokens(cut, TEXTS):
        assert cut[0].embedding.num_embeddings < whole[0].embedding.num_embeddings
        steps(cut)
    assert torch.equal(whole[0].embedding.weight, cut[0].embedding.weight)
    assert not torch.equal(start, cut[0].embedding.weight)
    assert torch.equal(whole.encode(TEXTS, convert_to_tensor=True), cut.encode(TEXTS, convert_to_tensor=True))


def test_a_text_with_other_tokens_fails_inside_and_works_after(tiny_encoder: Path) -> None:
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    before = model.encode(["hotel"], convert_to_tensor=True)
    with only_used_tokens(model, TEXTS), pytest.raises(RuntimeError):
        model.encode(["hotel"])
    assert torch.equal(before, model.encode(["hotel"], convert_to_tensor=True))


def test_what_was_learned_before_an_error_is_kept(tiny_encoder: Path) -> None:
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    before = model.encode(TEXTS, convert_to_tensor=True)

    def learn_and_fail() -> None:
        with only_used_tokens(model, TEXTS):
            steps(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_and_fail()
    assert not torch.equal(before, model.encode(TEXTS, convert_to_tensor=True))


def test_texts_without_any_token_are_found(tiny_encoder: Path) -> None:
    assert unreadable(SentenceTransformer(str(tiny_encoder), device="cpu"), ["card", "", "   ", "rain"]) == [1, 2]
