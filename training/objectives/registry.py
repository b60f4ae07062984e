"""The objectives by name: how each is built, which data it wants, and which figures it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

from sentence_transformers import SentenceTransformer
from torch import nn

from index.errors import SettingsError
from training.objectives import adaptive, contrastive, huge, maps, margins
from training.objectives.base import Objective
from training.objectives.contrastive import Shape


@dataclass(frozen=True, slots=True)
class Entry:
    """One objective. `build(model, classes, **options)` makes it; `shape` is the data it is called with."""

    build: Callable[..., nn.Module]
    shape: Shape = "labelled"

    @property
    def options(self) -> dict[str, Any]:
        """The options `build` takes, with their defaults."""
        parameters = list(inspect.signature(self.build).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        source = self.build.func if isinstance(self.build, partial) else self.build
        return (inspect.getdoc(source) or "").split("\n")[0]


OBJECTIVES: Mapping[str, Entry] = {
    "am-softmax": Entry(margins.AMSoftmax),
    "arcface": Entry(margins.ArcFace),
    "sphereface": Entry(margins.SphereFace),
    "combined": Entry(margins.CombinedMargin),
    "sub-center": Entry(margins.SubCenterArcFace),
    "adaface": Entry(adaptive.AdaFace),
    "magface": Entry(adaptive.MagFace),
    "curricularface": Entry(adaptive.CurricularFace),
    "adacos": Entry(adaptive.AdaCos),
    "normalised-softmax": Entry(margins.NormalisedSoftmax),
    "softmax": Entry(maps.PlainSoftmax),
    "taylor": Entry(maps.TaylorSoftmax),
    "entmax": Entry(maps.FenchelYoung),
    "sparsemax": Entry(partial(maps.FenchelYoung, alpha=2.0)),
    "sparse-softmax": Entry(maps.SparseSoftmax),
    "smooth-accuracy": Entry(maps.SmoothAccuracy),
    "exact": Entry(maps.Exact),
    "partial-fc": Entry(huge.PartialFC),
    "exact-sparse": Entry(huge.ExactSparse),
    "multiple-negatives-ranking": Entry(contrastive.multiple_negatives_ranking, "pairs"),
    "batch-all-triplet": Entry(contrastive.batch_all_triplet, "grouped"),
    "batch-hard-triplet": Entry(contrastive.batch_hard_triplet, "grouped"),
    "batch-semi-hard-triplet": Entry(contrastive.batch_semi_hard_triplet, "grouped"),
    "batch-hard-soft-margin-triplet": Entry(contrastive.batch_hard_soft_margin_triplet, "grouped"),
    "contrastive": Entry(contrastive.contrastive, "scored pairs"),
    "online-contrastive": Entry(contrastive.online_contrastive, "scored pairs"),
    "cosent": Entry(contrastive.cosent, "scored pairs"),
    "triplet": Entry(contrastive.triplet, "triplets"),
}


WithClassWeights = Literal[
    "am-softmax", "arcface", "sphereface", "combined", "sub-center", "adaface", "magface", "curricularface", "adacos",
    "normalised-softmax", "softmax", "taylor", "entmax", "sparsemax", "sparse-softmax", "smooth-accuracy", "exact",
    "partial-fc", "exact-sparse",
]  # fmt: skip
"""The names of those that are an `Objective`, for the checkers of types."""


@overload
def make_objective(name: WithClassWeights, model: SentenceTransformer, classes: int, **options: Any) -> Objective: ...
@overload
def make_objective(name: str, model: SentenceTransformer, classes: int, **options: Any) -> nn.Module: ...
def make_objective(name: str, model: SentenceTransformer, classes: int, **options: Any) -> nn.Module:
    """The objective `name` over `model` for `classes` classes. An option that is None is left at its default.

    Raises `SettingsError` for an unknown name, an option it does not take, or a value out of range.
    """
    given = check_options(name, options)
    try:
        return OBJECTIVES[name].build(model, classes, **given)
    except ValueError as error:
        raise SettingsError(f"The loss {name} cannot be made: {error}.") from error


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, as the objective `name` takes them. Raises `SettingsError`, see `make_objective`."""
    if name not in OBJECTIVES:
        raise SettingsError(f"There is no loss {name!r}. Choose one of {', '.join(OBJECTIVES)}.")
    entry = OBJECTIVES[name]
    given = {option: value for option, value in options.items() if value is not None}
    foreign = sorted(given.keys() - entry.options.keys())
    if foreign:
        takes = ", ".join(f"{option} ({default})" for option, default in entry.options.items()) or "no options"
        raise SettingsError(f"The loss {name} takes no {foreign[0]}; it takes {takes}. Leave {foreign[0]} out.")
    for option, value in given.items():
        kind = str(inspect.signature(entry.build).parameters[option].annotation)
        if kind == "bool" and value not in (0, 1):
            raise SettingsError(f"The loss {name} takes 0 or 1 for {option}, got {value}.")
        if "int" in kind:
            if value != int(value):
                raise SettingsError(f"The loss {name} takes a whole number for {option}, got {value}.")
            given[option] = int(value)
    return given
