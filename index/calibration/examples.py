"""Where calibration's examples come from: queries, what the gallery shows them, and what the right answer was.

An example is a query with its evidence, its true candidate (or `NO_MATCH`) and a weight. Known queries see the gallery
as it is. Unknown queries are real ones if the user has some; class-removed ones stand in: a known query from which its
own label is hidden (a near unknown), and from which the labels around it are hidden too (a far one), half and half.
Where real ones are few, imitated ones stand in for those that are missing.
A promise (sets, thresholds) must hold for the harder half as well, so it rests on near ones alone: labels that nobody
indexed lie as near to a gallery's as its own labels lie to each other.
Knowns and unknowns are weighted to the share of unknown queries expected in use, because a probability is a promise
about a mix.

Where there are no queries at all, items of an untrained gallery ask for themselves, each left out together with its
near copies: an item's nearest neighbour is closer than a real query's, and without that the answers would be too sure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from index.calibration.conditional_logit import FEW_QUERIES, MIN_QUERIES, NO_MATCH
from index.calibration.evidence import TOP_K, Evidence, Floats, Ints, blocks, exact_top, gather
from index.errors import CalibrationError
from index.items.profile import LabelProfile

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]
NEAR_COPY = 0.92
"""Cosine from which an item counts as a copy of one left out (`make bench-calibration`, "no queries")."""
AROUND = 0.05
"""Share of the labels, nearest first, that is hidden to imitate a far unknown query."""

FEW_UNKNOWN = 5
"""Real unknown queries below which imitated ones always help."""
ENOUGH = 400
"""Known queries that need no prior."""
PRIOR_ITEMS = 1000


@dataclass(frozen=True, slots=True)
class Queries:
    """Calibration queries: unit vectors (n, d) and label codes (n,), -1 for a label that is not in the gallery.

    `source` says where they come from, for the report. `rows` (n,) gives the gallery position of a query that is itself
    an item, -1 otherwise: those items are hidden from all queries, or, with `leave_one_out`, each from its own query,
    with the items as near to it as `near_copy`. `names` are the labels, as given, of the queries that are no items.
    `items_untrained` says that the encoder was trained on none of the items, so that they may help out as a prior.
    The last of the queries are users' feedback: `feedback` (f,) gives the numbers of those notes. `caveats` are what a
    calibration on these queries has to say of itself.
    """

    vectors: Vectors
    codes: Ints
    rows: Ints
    source: str
    leave_one_out: bool = False
    near_copy: float = NEAR_COPY
    names: tuple[str | None, ...] = ()
    items_untrained: bool = False
    feedback: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    caveats: tuple[str, ...] = ()

    def only(self, kept: Flags) -> Queries:
        """Those queries (n,), in their order."""
        given, fed = self.rows < 0, len(self.codes) - len(self.feedback)
        names = [name for name, stays in zip(self.names, kept[given], strict=True) if stays] if self.names else []
        return replace(
            self,
            vectors=self.vectors[kept],
            codes=self.codes[kept],
            rows=self.rows[kept],
            names=tuple(names),
            feedback=self.feedback[kept[fed:]],
        )


@dataclass(frozen=True, slots=True)
class Examples:
    """What a calibrator is fitted on and measured with. `group` (n,) ties the twins made from one query together,
    `identity` (n,) the queries that carry one label, in the gallery or not.

    `prior` are examples of another kind that the fit starts from where these are few; nothing is measured with them.
    `promised` (n,) are the weights where a promise is made, of far unknowns 0; None: they are `weight`.
    """

    evidence: Evidence
    target: Ints
    codes: Ints
    weight: Floats
    group: Ints
    identity: Ints
    unknown_share: float
    source: str
    unknowns: str
    prior: Examples | None = None
    promised: Floats | None = None

    @property
    def right(self) -> Flags:
        """(n,) whether the top hit's label is the query's."""
        found: Flags = self.codes == self.evidence.codes[self.evidence.starts[:-1]]
        return found


def examples(queries: Queries, gallery: Vectors, codes: Ints, labels: int, unknown_share: float) -> Examples:
    """Examples of `queries` against the gallery (size, d) with codes (size,), of which those below `labels` are labels.

    Raises `CalibrationError`.
    """
    known = np.flatnonzero(queries.codes >= 0)
    real = np.flatnonzero(queries.codes < 0)
    enough(len({vector.tobytes() for vector in queries.vectors[known]}))
    view = _view(queries, gallery, codes, labels)
    _check_labels(queries, known)
    # an item whose label shows no other has nothing to find, and would count as unknown among the known
    known = known[_able(queries, known, view)]
    prior = _prior(queries, len(known), gallery, codes, labels, unknown_share)
    needed = needed_unknown(len(known), unknown_share)
    removed = known[:0] if len(real) >= needed else known
    asked = ((known, "nothing"), (real, "nothing"), (removed, "own label"), (removed, "labels around"))
    wanted = f"give at least {needed} with --unknown FILE" + (f" ({len(real)} are too few)" if len(real) else "")
    evidence = concatenate([_evidence(queries, part, view, hidden, wanted) for part, hidden in asked if len(part)])
    truth = np.concatenate([queries.codes[known], np.full(len(real) + 2 * len(removed), -1)])
    target = np.where(truth >= 0, evidence.candidate(truth), NO_MATCH)
    group = np.concatenate([known, real, removed, removed])
    weight = _weights(len(known), len(real), len(removed), unknown_share, needed)
    return Examples(
        evidence,
        target,
        truth,
        weight,
        group,
        _identities(queries, labels)[group],
        unknown_share,
        queries.source,
        _describe_unknowns(len(real), len(removed)),
        prior,
        _on_near_ones(weight, len(removed)),
    )


def _check_labels(queries: Queries, known: Ints) -> None:
    """Raises `CalibrationError` when all known queries carry one label: nothing is learned of the others."""
    if len(known) and len(np.unique(queries.codes[known])) == 1:
        raise CalibrationError(
            f"All {len(known)} calibration queries with their label in the gallery carry the same one, so they say "
            "nothing of the others. Give queries of several labels with --calibrate FILE."
        )


def _identities(queries: Queries, labels: int) -> Ints:
    """(n,) a number for each label, whether the gallery has it or not; of a query without one its own, below 0."""
    found = np.where(queries.codes >= 0, queries.codes, -1 - np.arange(len(queries.codes)))
    first: dict[str, int] = {}
    for at, name in zip(np.flatnonzero(queries.rows < 0).tolist(), queries.names, strict=False):
        if name is not None and queries.codes[at] < 0:
            found[at] = first.setdefault(name, labels + at)
    return found


def _prior(
    queries: Queries, known: int, gallery: Vectors, codes: Ints, labels: int, unknown_share: float
) -> Examples | None:
    """Where queries are few and the encoder untrained, what items left out one by one say; None where they cannot."""
    if not queries.items_untrained or queries.leave_one_out or known >= ENOUGH:
        return None
    at = np.random.default_rng(0).permutation(np.flatnonzero(codes < labels))[:PRIOR_ITEMS]
    own = Queries(gallery[at], codes[at], at, "the gallery's own items", leave_one_out=True)
    try:
        return examples(own, gallery, codes, labels, unknown_share)
    except CalibrationError:
        return None


def join(made: Examples, part: Ints, worth: float) -> tuple[Evidence, Ints, Floats]:
    """Evidence, target and weight to fit on: the examples at `part` and, counting as `worth` queries, the prior's."""
    some = select(made.evidence, part)
    target = made.target[part]
    target = np.where(target >= 0, target - made.evidence.starts[part] + some.starts[:-1], NO_MATCH)
    weight = made.weight[part]
    if made.prior is None:
        return some, target, weight
    of_prior = np.where(made.prior.target >= 0, made.prior.target + len(some.codes), NO_MATCH)
    scaled = made.prior.weight * (worth / made.prior.weight.sum())
    evidence = concatenate([some, made.prior.evidence])
    return evidence, np.concatenate([target, of_prior]), np.concatenate([weight, scaled])


def enough(known: int) -> None:
    """Raises `CalibrationError` for fewer known queries than can be fitted to honestly; copies of one count once."""
    if known < FEW_QUERIES:
        raise CalibrationError(
            f"{known} different calibration queries have their label in the gallery; at least {FEW_QUERIES} are needed "
            f"for probabilities that mean something, and {MIN_QUERIES} for good ones. Give more labelled queries with "
            "--calibrate FILE."
        )


def concatenate(parts: list[Evidence]) -> Evidence:
    """The evidence of several batches of queries, one after the other."""
    offsets = np.cumsum([0] + [len(part.codes) for part in parts])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    return Evidence(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.codes for part in parts]),
        np.concatenate([*starts, offsets[-1:]]),
        np.concatenate([part.background for part in parts]),
    )


def select(evidence: Evidence, queries: Ints) -> Evidence:
    """The evidence of some of the queries, in the order asked for."""
    sizes = np.diff(evidence.starts)[queries]
    starts = np.concatenate(([0], np.cumsum(sizes)))
    at = np.arange(starts[-1]) - np.repeat(starts[:-1] - evidence.starts[queries], sizes)
    return Evidence(evidence.features[at], evidence.codes[at], starts, evidence.background[queries])


@dataclass(frozen=True, slots=True)
class _View:
    """The items the queries may see: vectors (size, d), codes (size,), gallery positions (size,), and their labels."""

    vectors: Vectors
    codes: Ints
    positions: Ints
    profile: LabelProfile


def _view(queries: Queries, gallery: Vectors, codes: Ints, labels: int) -> _View:
    if len(np.unique(codes)) < 2:
        raise CalibrationError(
            "All items of the gallery have one label, so there is nothing to tell apart. Index items of other labels "
            "too; to tell one thing from everything else, give them a label such as `other`."
        )
    shown = np.ones(len(codes), np.bool_)
    if not queries.leave_one_out:
        shown[queries.rows[queries.rows >= 0]] = False
    if len(np.unique(codes[shown])) < 2:
        raise CalibrationError(
            "Fewer than two labels are left in the gallery beside the calibration queries, so there is nothing to tell "
            "apart. Give calibration queries that are not items, with --calibrate FILE."
        )
    if not shown.all():  # a large gallery is not copied for nothing
        gallery, codes = gallery[shown], codes[shown]
    # of what the queries see: a reserved query must not have moved its label's centroid
    return _View(gallery, codes, np.flatnonzero(shown), LabelProfile.of(gallery, codes, labels))


def _evidence(queries: Queries, part: Ints, view: _View, hidden: str, wanted: str) -> Evidence:
    """What the queries at `part` see when "nothing", their "own label" or the "labels around" them are hidden.

    Raises `CalibrationError` when some see nothing, which real unknown queries help against: `wanted`.
    """
    vectors, own = queries.vectors[part], queries.codes[part]

    def unseen(block: slice) -> Flags:
        mask = np.zeros((len(vectors[block]), len(view.codes)), np.bool_)
        if queries.leave_one_out:
            mask |= _left_out(queries, part[block], view)
        if hidden != "nothing":
            mask |= own[block, None] == view.codes[None]
        if hidden == "labels around":
            mask |= _around(vectors[block], view)
        return mask

    scores, positions = exact_top(vectors, view.vectors, TOP_K, unseen)
    some = np.isfinite(scores[:, 0])
    if not some.all():
        raise CalibrationError(
            f"{(~some).sum()} calibration queries see no item at all once their own label is hidden. The gallery is "
            f"too small or too uniform to imitate unknown queries: {wanted}."
        )
    evidence = gather(scores, view.codes[positions], vectors, view.profile)
    if queries.leave_one_out and hidden == "nothing":
        _correct_centroids(evidence, queries, part, view)
    return evidence


def _left_out(queries: Queries, part: Ints, view: _View, items: Ints | slice = slice(None)) -> Flags:
    """(n, m): the item a query is, and its near copies, among `items`. Queries that are no items see everything."""
    asking = queries.rows[part] >= 0
    near = queries.vectors[part] @ view.vectors[items].T >= queries.near_copy
    hidden: Flags = (near & asking[:, None]) | (queries.rows[part][:, None] == view.positions[None, items])
    return hidden


def _around(vectors: Vectors, view: _View) -> Flags:
    """(n, size): items of the labels whose centroids are nearest, `AROUND` of all and at least two."""
    labels = len(view.profile.centroids)
    count = min(labels, max(2, int(AROUND * labels)))
    nearest = np.argpartition(-(vectors @ view.profile.centroids.T), count - 1, axis=1)[:, :count]
    hidden = np.zeros((len(vectors), labels + 1), np.bool_)
    np.put_along_axis(hidden, nearest, True, axis=1)
    hidden[:, labels] = False  # unlabelled items have no label around them
    return hidden[:, np.minimum(view.codes, labels)]


def _fellows(queries: Queries, at: Ints, view: _View) -> tuple[Ints, Floats]:
    """Of the items of its label that each left-out query at `at` (n,) still sees, the number (n,) and sum (n, d).

    The label's sum less what is left out, so that a large label is not summed anew for each query.
    """
    count, total = np.zeros(len(at), np.int64), np.zeros((len(at), view.vectors.shape[1]))
    codes = queries.codes[at]
    for code in np.unique(codes):
        mine, asking = np.flatnonzero(view.codes == code), np.flatnonzero(codes == code)
        vectors = view.vectors[mine]
        whole = vectors.sum(axis=0, dtype=np.float64)
        for block in blocks(len(asking), len(mine)):
            part = asking[block]
            hidden = _left_out(queries, at[part], view, mine)
            count[part] = len(mine) - hidden.sum(axis=1)
            total[part] = [whole - vectors[gone].sum(axis=0, dtype=np.float64) for gone in hidden]
    return count, total


def _correct_centroids(evidence: Evidence, queries: Queries, part: Ints, view: _View) -> None:
    """A left-out query must not see itself in its label's centroid: the cosine is to the fellows it still sees."""
    target = evidence.candidate(queries.codes[part])
    items = (target >= 0) & (queries.rows[part] >= 0)
    count, centroid = _fellows(queries, part[items], view)
    length = np.linalg.norm(centroid, axis=1)
    cosine = np.einsum("nd,nd->n", queries.vectors[part[items]], centroid)
    some = (count > 0) & (length > 0)
    evidence.features[target[items], 3] = np.divide(cosine, length, out=np.zeros(len(cosine)), where=some)


def _able(queries: Queries, known: Ints, view: _View) -> Flags:
    """(n,) whether each known query sees an item of its label, as one left out may not. Raises `CalibrationError`."""
    if not queries.leave_one_out:
        return np.ones(len(known), np.bool_)
    able: Flags = _fellows(queries, known, view)[0] > 0
    if able.sum() < FEW_QUERIES:
        raise CalibrationError(
            f"Of {len(known)} items only {able.sum()} have another of their label that is no near copy, so items "
            "cannot ask for their like. Give labelled queries with --calibrate FILE, or, where the encoder was trained "
            "on the other items, train it with --unseen-classes 0.2."
        )
    return able


def needed_unknown(known: int, share: float) -> int:
    """Real unknown queries that need no imitated ones beside them: as many as weigh what known ones do, from
    `FEW_UNKNOWN` to `MIN_QUERIES`."""
    return int(min(MIN_QUERIES, max(FEW_UNKNOWN, np.ceil(known * share / (1 - share)))))


def _weights(known: int, real: int, removed: int, share: float, needed: int) -> Floats:
    """Weights that give unknown queries the mass `share`; beside removed ones, real ones have their share of `needed`:
    one odd query must not stand for all that is unknown. They add up to the queries, of which imitations are none."""
    total = known + real
    of_real = real / needed if removed else 1.0
    each = [part / count if count else 0.0 for part, count in ((of_real, real), (1 - of_real, 2 * removed))]
    weights = [(1 - share) / known, *(share * one for one in each)]
    return total * np.repeat(weights, [known, real, 2 * removed])


def _on_near_ones(weight: Floats, removed: int) -> Floats:
    """`weight` (n,) of examples that end with as many near and far unknowns, with all of the latter's at the former."""
    moved = weight.copy()
    near, far = (slice(len(weight) - times * removed, len(weight) - (times - 1) * removed) for times in (2, 1))
    moved[near] += moved[far]
    moved[far] = 0
    return moved


def _describe_unknowns(real: int, removed: int) -> str:
    said = [f"{real} real unknown {'query' if real == 1 else 'queries'}"] if real else []
    imitated = "which imitate unknown ones (own label, or the labels around it too, hidden)"
    said += [f"{2 * removed} class-removed queries, {imitated}"] if removed else []
    return " and ".join(said)
