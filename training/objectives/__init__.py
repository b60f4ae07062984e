"""Training objectives by name. Each is an `nn.Module` called as `loss(sentence_features, labels)`, as the losses of
sentence-transformers are, so it works in any `SentenceTransformerTrainer`, and in `surematch train --loss NAME`.
"""

from training.objectives.base import HEAD_PARAMETERS, Objective, objective_state
from training.objectives.registry import OBJECTIVES, Entry, check_options, make_objective

__all__ = ["HEAD_PARAMETERS", "OBJECTIVES", "Entry", "Objective", "check_options", "make_objective", "objective_state"]
