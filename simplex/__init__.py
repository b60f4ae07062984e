"""Maps from scores to the probability simplex, their losses, margins and certificates, for numpy and torch.

`import simplex` does not import torch: tensors bring it along. The modules:

    maps         softmax, taylor_softmax, sparse_softmax, sparsemax, entmax15, entmax, logsumexp
    sampling     gumbel_max, gumbel_softmax, straight_through
    perturb      perturb_max for any noise, its Jacobian, potential and convex loss
    attention    taylor_attention in linear time
    losses       cross_entropy, taylor, smooth_accuracy, fenchel_young and its relatives
    margins      cosface, arcface, sphereface, combined, triangle, sub_centers on cosines (torch only)
    certificate  what the k best scores prove about the probabilities over all N
"""

from simplex.attention import taylor_attention
from simplex.certificate import Certificate, certify, support_radius
from simplex.maps import (
    entmax,
    entmax15,
    log_softmax,
    logsumexp,
    softmax,
    sparse_softmax,
    sparsemax,
    taylor_log_softmax,
    taylor_softmax,
)
from simplex.noise import Noise
from simplex.perturb import perturb_max, perturb_max_jacobian, perturb_max_loss, perturb_max_potential
from simplex.sampling import gumbel_max, gumbel_noise, gumbel_softmax, straight_through

__all__ = [
    "Certificate",
    "Noise",
    "certify",
    "entmax",
    "entmax15",
    "gumbel_max",
    "gumbel_noise",
    "gumbel_softmax",
    "log_softmax",
    "logsumexp",
    "perturb_max",
    "perturb_max_jacobian",
    "perturb_max_loss",
    "perturb_max_potential",
    "softmax",
    "sparse_softmax",
    "sparsemax",
    "straight_through",
    "support_radius",
    "taylor_attention",
    "taylor_log_softmax",
    "taylor_softmax",
]
