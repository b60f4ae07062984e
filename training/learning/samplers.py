"""Which rows share a batch: texts of similar length, several rows of a class, or small classes more often.

Every order follows from the seed and the epoch alone, so a resumed run continues with the batches it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler

BUCKET = 50
"""Batches sorted by length together: padding nearly vanishes while the order stays random enough to learn from."""


class LengthBucketedSampler(DefaultBatchSampler):
    """Random batches of texts of similar length, so that a transformer computes little padding."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        self._lengths = torch.tensor([len(text) for text in dataset["text"]])

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        """The rows of an epoch, in random order."""
        return torch.randperm(len(self._lengths), generator=generator)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = self._order(generator)
        batches: list[list[int]] = []
        for bucket in order.split(BUCKET * self.batch_size):
            by_length = bucket[self._lengths[bucket].argsort(stable=True)]
            batches += [batch.tolist() for batch in by_length.split(self.batch_size)]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        for at in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[at]


class BalancedSampler(LengthBucketedSampler):
    """As many rows an epoch as there are, drawn with replacement so that small classes come more often.

    A class of n rows is drawn in proportion to n^(1 - balance): 0 draws rows as often as they are there, 1 every class
    equally often, 1/2 by the square root (Kang et al., "Decoupling Representation and Classifier for Long-Tailed
    Recognition", 2020, section 3.1). Batches hold texts of similar length.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        balance: float = 1.0,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be from 0 to 1, got {balance}")
        _, codes, sizes = torch.tensor(dataset["label"]).unique(return_inverse=True, return_counts=True)
        self._bounds = (sizes.double() ** -balance)[codes].cumsum(0)

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        # inverse of the cumulative weights: torch.multinomial takes at most 2^24 rows
        drawn = torch.rand(len(self._bounds), generator=generator, dtype=torch.float64) * self._bounds[-1]
        return torch.searchsorted(self._bounds, drawn, right=True).clamp(max=len(self._bounds) - 1)


class PerClassSampler(DefaultBatchSampler):
    """Batches of `per_class` rows of each of batch_size / per_class classes; every row comes at least once an epoch.

    Each class is shuffled and cut into groups of `per_class`; the last group is filled up with rows of the class drawn
    again, so small classes weigh more. A class of fewer rows repeats some within its group.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        per_class: int = 4,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        if not 2 <= per_class <= batch_size // 2:
            raise ValueError(f"per_class must be from 2 to half the batch, {batch_size // 2}, got {per_class}")
        labels = torch.tensor(dataset["label"])
        self._classes = [torch.nonzero(labels == code)[:, 0] for code in labels.unique().tolist()]
        self._per_class = per_class

    def __len__(self) -> int:
        groups = sum(-(-len(rows) // self._per_class) for rows in self._classes)
        a_batch = int(self.batch_size) // self._per_class
        return groups // a_batch if self.drop_last else -(-groups // a_batch)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        groups = []
        for rows in self._classes:
            order = rows[torch.randperm(len(rows), generator=generator)]
            missing = -len(order) % self._per_class
            again = rows[torch.randint(len(rows), (missing,), generator=generator)]
            groups += list(torch.cat([order, again]).split(self._per_class))
        a_batch = self.batch_size // self._per_class
        shuffled = torch.randperm(len(groups), generator=generator).tolist()
        for start in range(0, len(shuffled), a_batch):
            chosen = shuffled[start : start + a_batch]
            if len(chosen) == a_batch or not self.drop_last:
                yield torch.cat([groups[at] for at in chosen]).tolist()
