"""What a running service holds: an opened collection that has answered one real query, and the threads that ask it."""

from __future__ import annotations

from dataclasses import dataclass

from index.answer import Answer
from index.collection import Collection
from index.evidence import TOP_K
from service.metrics import Metrics
from service.searcher import Searcher
from service.settings import ServeSettings

WARM_UP = "what can you do for me"
EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Serving:
    """One collection and its threads as one unit, so that a later version can take its place whole."""

    collection: Collection
    searcher: Searcher
    examples: list[str]

    @classmethod
    def open(cls, settings: ServeSettings, metrics: Metrics | None = None) -> Serving:
        """Open, verify and warm the collection. Raises `CollectionError` or `EncoderError`."""
        collection = Collection.open(settings.collection)
        try:
            # The first query pays for lazy loading and compilation, and proves that encoder and gallery fit.
            (answer,) = collection.search([WARM_UP], k=TOP_K)
        except BaseException:
            collection.close()
            raise
        searcher = Searcher(collection, settings, metrics or Metrics())
        return cls(collection, searcher, settings.examples or _examples(answer))

    def close(self) -> None:
        self.searcher.close()
        self.collection.close()


def _examples(answer: Answer) -> list[str]:
    """Texts of a few items with different labels: questions the page can offer when it was given none."""
    by_label = {hit.label: hit.text for hit in reversed(answer.hits) if hit.text and len(hit.text) <= 80}
    return list(by_label.values())[:EXAMPLES]
