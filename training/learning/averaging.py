"""Weights between those a training started from and those it reached.

    theta = (1 - share) theta_trained + share theta_start        (Wortsman et al. 2022, "Robust fine-tuning", eq. 1)

Fine-tuning makes an encoder better at the classes it sees, at some cost to all it knew before; part of the way back is
meant to keep most of both. `surematch train --start-share` says how far.
"""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer

Weights = dict[str, torch.Tensor]


def copied(model: SentenceTransformer) -> Weights:
    """The model's floating-point weights, as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items() if value.is_floating_point()}


def mix(model: SentenceTransformer, start: Weights, share: float) -> None:
    """Moves the model's weights towards `start`, in place; `share` from 0 (stay) to 1 (go back). Raises ValueError."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in start:
                value.lerp_(start[name].to(value.device), share)
