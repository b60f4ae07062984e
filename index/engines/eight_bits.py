"""Exact search that looks at every vector in 8 bits first, and proves for each query that nothing better was left out.

Comparing a query with all vectors takes as long as reading them. Rounded to 8 bits they are a quarter as long, and many
processors multiply them several times as fast. What rounding does to a cosine is bounded (Cauchy-Schwarz): for unit
vectors q and x, rounded to q' and x',

    q.x <= q'.x' + |x - x'| + |q - q'| |x'|

ONNX Runtime's product of integers gives q'.x' + |x - x'| for all vectors, from which it takes the largest; their true
cosines are then computed in float32. Where the k-th best of these is no smaller than the bound of every vector that was
left out, the answer is that of a full search. For a query where it is not, that is said, and somebody else must search.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.encoders.onnx_encoder import inference_session
from index.engines import exact
from index.engines.engine import Rows, Scores, Vectors
from index.engines.native_faiss import faiss

LARGEST = 2**30
"""Numbers in a gallery, and bytes of its copy, beyond which none is made."""
_BLOCK = 2**17
"""Vectors compared before the largest bounds are taken: what 64 queries have with them stays within 32 MB."""
_BATCH = 64
_TINY = np.finfo(np.float32).tiny
_SHORTEST = 1e-30
"""Queries that are shorter, or longer than its inverse, have products that float32 does not hold."""
_MOST = 127
"""Of a vector's rounded numbers. A query's are as large, or half as large: see `finest`."""
_PART = 4096
"""Vectors rounded at a time."""
_EPSILON = 2.0**-23
"""Of what sums of d products in float32 lose at most d times: twice the unit roundoff, for the bounds' own rounding."""
_UNLIKE = 2.0
"""Queries of a batch are rounded in steps of one size; those with a component so many times as large as others' would
coarsen it, and are in another batch."""
log = logging.getLogger("surematch.index")


class EightBits:
    """The vectors of a gallery once more, in 8 bits, ready to be searched; several threads may."""

    def __init__(self, vectors: Vectors) -> None:
        """`vectors` (m, d) in one piece must stay where they are: cosines are computed from them.

        Holds `nbytes` of memory, and three times as much while it is made (`make bench-index` tells how long that
        takes). Ask `usable` before.
        """
        self._vectors = vectors
        steps, lost = np.empty(len(vectors), np.float32), np.empty(len(vectors), np.float32)
        rounded = np.empty(vectors.shape, np.int8)
        longest = 0.0
        for start in range(0, len(vectors), _PART):
            part = slice(start, start + _PART)
            some = vectors[part]
            steps[part] = np.maximum(np.abs(some).max(axis=1, initial=0), _TINY) / _MOST
            whole = np.rint(some / steps[part, None])
            rounded[part] = whole
            whole *= steps[part, None]
            lost[part] = np.linalg.norm(some - whole, axis=1)
            longest = max(longest, float(np.linalg.norm(whole, axis=1).max()))
        self._longest = longest
        self._slack = (1 + longest) * vectors.shape[1] * _EPSILON
        # ONNX Runtime has packed its own copy of the rounded vectors then, see `finest`
        self._most = finest()
        self._more = 2 if self._most == _MOST else 3  # wider bounds: more vectors may be among the nearest
        self._session = inference_session(*_graph(rounded, steps, lost, self._most + 1))
        self._process = os.getpid()
        self.nbytes = rounded.nbytes + steps.nbytes + lost.nbytes

    @property
    def alive(self) -> bool:
        """False in a forked process: the threads of ONNX Runtime stayed with its parent."""
        return self._process == os.getpid()

    def top(
        self, queries: Vectors, k: int, passing: NDArray[np.bool_] | None = None
    ) -> tuple[Scores, Rows, NDArray[np.bool_]]:
        """Scores (n, k) descending and positions (n, k) of the k best for `queries` (n, d), and (n,) whether they are.

        `passing` (m,) marks the vectors that may be found. Where the third is False the others mean nothing.
        """
        n = len(queries)
        scores, positions = np.zeros((n, k), np.float32), np.zeros((n, k), np.int64)
        proven = np.zeros(n, np.bool_)
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
        unit = (queries / np.maximum(lengths, _TINY)[:, None]).astype(np.float32)
        peaks = np.abs(unit).max(axis=1, initial=0)
        order = np.argsort(peaks, kind="stable")
        order = order[(lengths[order] > _SHORTEST) & (lengths[order] < 1 / _SHORTEST)]
        while len(order):
            at = order[: min(_BATCH, int(np.searchsorted(peaks[order], _UNLIKE * peaks[order[0]], "right")))]
            order = order[len(at) :]
            near, bounds = self._nearest(unit[at], float(peaks[at].max()), min(self._more * k + 64, len(self._vectors)))
            cosines = self._cosines(queries[at], near)
            if passing is not None:
                cosines[~passing[near]] = -np.inf
            scores[at], positions[at] = exact.best(cosines, near, k)
            proven[at] = scores[at, -1] >= (bounds + self._slack) * lengths[at]
        return scores, positions, proven

    def _nearest(self, unit: Vectors, peak: float, count: int) -> tuple[Rows, Scores]:
        """Positions (n, count) of the vectors with the largest bounds, and what no other's cosine exceeds (n,)."""
        step = np.float32(peak / self._most)
        whole = np.rint(unit / step)
        lost = np.linalg.norm(unit - whole * step, axis=1)
        asked = {
            "queries": (whole + (self._most + 1)).astype(np.uint8),
            "step": np.array(step),
            "count": np.array([count]),
        }
        bounds, near = self._session.run(None, asked)
        if near.shape[1] > count:  # of several blocks
            best = np.argpartition(-bounds, count - 1, axis=1)[:, :count]
            bounds, near = np.take_along_axis(bounds, best, 1), np.take_along_axis(near, best, 1)
        if count == len(self._vectors):
            return near, np.full(len(unit), -np.inf, np.float32)
        return near, bounds.min(axis=1) + lost * self._longest

    def _cosines(self, queries: Vectors, near: Rows) -> Scores:
        n, count = near.shape
        cosines = np.empty((n, count), np.float32)
        near = np.ascontiguousarray(near).view("l")  # FAISS knows this name of an int64 alone
        pointer = faiss.swig_ptr
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # others would turn for a while afterwards, on cores that the next product needs
        try:
            faiss.fvec_inner_products_by_idx(
                pointer(cosines), pointer(queries), pointer(self._vectors), pointer(near), queries.shape[1], n, count
            )
        finally:
            faiss.omp_set_num_threads(threads)
        return cosines


def usable() -> bool:
    """Whether ONNX Runtime is here and multiplies integers as is needed."""
    return finest() > 0


@cache
def finest() -> int:
    """The largest number that a query may be rounded to, so that ONNX Runtime multiplies without losing any; 0: none.

    127, or 63 on processors without instructions for it, where sums of two products are cut off at 16 bits: such
    bounds are a little wider. And ONNX Runtime must pack a copy of constant factors, for ours is not kept.
    """
    if not (find_spec("onnxruntime") and find_spec("onnx")):
        return 0
    try:
        return next((most for most in (_MOST, _MOST // 2) if _exact(64, 64, 5, most) and _exact(200, 33, 1, most)), 0)
    except Exception as error:  # an ONNX Runtime that cannot be loaded, or is too old for what is asked of it
        log.warning("Large exact indexes are searched without 8 bits: %s", error)
        return 0


def _exact(size: int, dimension: int, queries: int, most: int) -> bool:
    """Whether products of the largest numbers, and of any, are right, and are still when the vectors have changed."""
    random = np.random.default_rng(0)
    for sign in (1, -1):
        items = random.integers(sign * _MOST, _MOST + 1, (size, dimension), np.int8)
        asked = random.integers(sign * most, most + 1, (queries, dimension), np.int8)
        truth = asked.astype(np.int64) @ items.T.astype(np.int64)
        content, constants = _graph(items, np.ones(size, np.float32), np.zeros(size, np.float32), most + 1)
        session = inference_session(content, constants)
        for packed in constants.values():
            packed[:] = 0
        shifted = (asked.astype(np.int64) + (most + 1)).astype(np.uint8)
        products, at = session.run(
            None, {"queries": shifted, "step": np.array(1, np.float32), "count": np.array([size])}
        )
        if (products != np.take_along_axis(truth, at, 1)).any():
            return False
    return True


def _graph(
    rounded: NDArray[np.int8], steps: Vectors, lost: Vectors, middle: int
) -> tuple[bytes, dict[str, NDArray[np.int8]]]:
    """An ONNX file from 8-bit queries (n, d) to the `count` largest bounds of each block and where they are, and the
    vectors that it names: within the file they would be copied, and hold up other threads meanwhile."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, apart = [], [], {}

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def constant_apart(name: str, value: NDArray[np.int8]) -> str:
        named = TensorProto(name=name, data_type=TensorProto.INT8, dims=value.shape)
        named.data_location = TensorProto.EXTERNAL
        named.external_data.add(key="location", value="memory")
        constants.append(named)
        apart[name] = value
        return name

    zero = constant("middle", np.array(middle, np.uint8))
    blocks = range(0, len(rounded), _BLOCK)
    for start in blocks:
        part = slice(start, start + _BLOCK)
        inputs = [
            "queries",
            constant_apart(f"vectors-{start}", np.ascontiguousarray(rounded[part].T)),
            "step",
            constant(f"steps-{start}", steps[part].astype(np.float32)),
            zero,
            constant(f"zeros-{start}", np.zeros(len(steps[part]), np.int8)),
            constant(f"lost-{start}", lost[part]),
        ]
        size = constant(f"size-{start}", np.array([len(steps[part])]))
        offset = constant(f"offset-{start}", np.array(start))
        nodes += [
            helper.make_node("MatMulIntegerToFloat", inputs, [f"all-{start}"], domain="com.microsoft"),
            helper.make_node("Min", ["count", size], [f"count-{start}"]),
            helper.make_node(
                "TopK", [f"all-{start}", f"count-{start}"], [f"bounds-{start}", f"inside-{start}"], sorted=0
            ),
            helper.make_node("Add", [f"inside-{start}", offset], [f"positions-{start}"]),
        ]
    for name in ("bounds", "positions"):
        nodes.append(helper.make_node("Concat", [f"{name}-{start}" for start in blocks], [name], axis=1))
    given = [
        helper.make_tensor_value_info("queries", TensorProto.UINT8, ["n", rounded.shape[1]]),
        helper.make_tensor_value_info("step", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
    ]
    found = [
        helper.make_tensor_value_info("bounds", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("positions", TensorProto.INT64, None),
    ]
    graph = helper.make_graph(nodes, "eight-bits", given, found, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), apart
