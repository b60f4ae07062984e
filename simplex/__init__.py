"""Maps from scores to the probability simplex, their losses, margins and certificates, for numpy and torch.

`import simplex` does not import torch: tensors bring it along. The modules:

    maps         softmax, taylor_softmax, sparse_softmax, sparsemax, entmax15, entmax, logsumexp
    sampling     gumbel_max, gumbel_softmax, straight_through
    perturb      perturb_max for any noise, its Jacobian, potential and convex loss
    attention    taylor_attention in linear time
    losses       cross_entropy, smooth_accuracy, fenchel_young and its relatives
    margins      cosface, arcface, sphereface, combined, triangle, sub_centers on cosines
    certificate  what the k best scores prove about the probabilities over all N
"""

from simplex.certificate import Certificate, certify, support_radius
from simplex.maps import (
    entmax,
    entmax15,
    log_softmax,
    logsumexp,
    softmax,
    sparse_softmax,
    sparsemax,
    taylor_softmax,
)

__all__ = [
    "Certificate",
    "certify",
    "entmax",
    "entmax15",
    "log_softmax",
    "logsumexp",
    "softmax",
    "sparse_softmax",
    "sparsemax",
    "support_radius",
    "taylor_softmax",
]
