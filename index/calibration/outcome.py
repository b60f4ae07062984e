"""From fitted logits to the distribution over labels and no match, under any map of `simplex`.

Softmax over the fitted logits is the calibrated distribution. The sparse maps give the short list; each has a
temperature of its own, fitted on held-out logits, so that its probabilities too mean something (see `Calibration`).
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from index.answer import MapSpec
from index.calibration.evidence import Evidence, Floats, Ints
from index.errors import DataError
from simplex import entmax, log_softmax, softmax, taylor_softmax

TAYLOR_ORDER = 6
NAMED = {"softmax": "softmax", "sparsemax": "entmax:2", "entmax15": "entmax:1.5", "taylor": f"taylor:{TAYLOR_ORDER}"}
CALLED = {canonical: name for name, canonical in NAMED.items()}
ALPHAS = (1.25, 1.5, 1.75, 2.0)
"""Entmax alphas whose temperature is fitted; between them it is interpolated, at 1 the map is softmax."""


def map_name(spec: MapSpec) -> str:
    """The map's canonical name: "softmax", "entmax:1.5", "taylor:6". Raises `DataError` for an unknown map."""
    if isinstance(spec, str) and spec in NAMED:
        return NAMED[spec]
    asked = spec
    if isinstance(spec, str) and ":" in spec:
        kind, _, figure = spec.partition(":")
        with suppress(ValueError):
            spec = {kind: float(figure)}
    if isinstance(spec, dict) and len(spec) == 1:
        (kind, value), number = next(iter(spec.items())), isinstance(next(iter(spec.values())), int | float)
        if kind == "entmax" and number and 1 <= value <= 2:
            name = f"entmax:{value:g}"
            return "softmax" if name == "entmax:1" else name
        if kind == "taylor" and value in (2, 4, 6, 8, 10):
            return f"taylor:{value:g}"
    raise DataError(
        f"No map {asked!r}. Use softmax, sparsemax, entmax15, taylor, or {{'entmax': alpha}} with alpha from 1 to 2 "
        "(as one word: entmax:1.3)."
    )


def table(evidence: Evidence, logits: Floats, no_match: Floats) -> Floats:
    """Logits as one row a query (n, 1 + L): no match first, then the candidates in order, -inf to the right end."""
    starts, query = evidence.starts, evidence.query
    rows = np.full((len(evidence), 1 + int((starts[1:] - starts[:-1]).max(initial=0))), -np.inf)
    rows[:, 0] = no_match
    rows[query, np.arange(1, 1 + len(logits)) - starts[query]] = logits
    return rows


def column(evidence: Evidence, target: Ints) -> Ints:
    """The column of `table` each query's true candidate `target` (n,) stands in; no match is column 0."""
    return np.where(target >= 0, 1 + target - evidence.starts[:-1], 0)


def distribution(rows: Floats, name: str, temperature: float, worst: Floats | None = None) -> Floats:
    """Probabilities of a `table` (n, 1 + L), each row summing to 1. `name` is canonical, see `map_name`.

    Taylor softmax is not shift-invariant: scores are measured from `worst` (n,) up, without it from the least of each
    row.
    """
    kind, _, parameter = name.partition(":")
    if kind == "softmax":
        return softmax(rows, temperature=temperature)
    if kind == "entmax":
        return entmax(rows, float(parameter), temperature=temperature)
    zero = worst_of(rows) if worst is None else worst
    return taylor_softmax(rows - zero[:, None], order=int(parameter), temperature=temperature)


def worst_of(rows: Floats) -> Floats:
    """(n,) the least logit in each row of a `table`."""
    least: Floats = np.where(np.isfinite(rows), rows, np.inf).min(axis=1)
    return least


def fit_temperature(rows: Floats, truth: Ints, weight: Floats, name: str) -> float:
    """The temperature at which map `name` loses least on a held-out `table` whose true columns are `truth` (n,).

    Each map by its own proper loss: Fenchel-Young for entmax, negative log likelihood for the others.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(np.average(_losses(rows, truth, name, float(np.exp(log_temperature))), weights=weight))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(50.0)), method="bounded", options={"xatol": 1e-2})
    return float(np.exp(found.x))


def _losses(rows: Floats, truth: Ints, name: str, temperature: float) -> Floats:
    each = np.arange(len(rows))
    kind, _, parameter = name.partition(":")
    if kind == "softmax":
        return -log_softmax(rows, temperature=temperature)[each, truth]
    p = distribution(rows, name, temperature)
    if kind == "taylor":
        return -np.log(p[each, truth])
    alpha, z = float(parameter), np.where(np.isfinite(rows), rows, 0.0) / temperature
    gap: Floats = (p * z).sum(axis=1) - z[each, truth]
    entropy: Floats = (1 - (p**alpha).sum(axis=1)) / (alpha * (alpha - 1))
    return gap + entropy


def interpolated(temperatures: dict[str, float], name: str) -> float | None:
    """The fitted temperature of `name`, between fitted alphas by interpolating its logarithm; None if never fitted."""
    if name in temperatures:
        return temperatures[name]
    kind, _, parameter = name.partition(":")
    fitted = sorted((float(key[7:]), value) for key, value in temperatures.items() if key.startswith("entmax:"))
    if kind != "entmax" or not fitted:
        return None
    points = [(1.0, temperatures.get("softmax", 1.0)), *fitted]
    alphas, values = zip(*points, strict=True)
    return float(np.exp(np.interp(float(parameter), alphas, np.log(values))))
