"""The text part of `bench_service.py` that needs MiniLM: our service on its int8 export, and sentence-transformers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_bulk import texts
from benchmarks.kept import built
from index.build import Held, build_collection
from index.data.rows import Row
from index.encoders.files import open_sentence_transformer

ROWS, ASKED = 1500, 1000
TURNS, TURN = 12, 1
"""How often ours and theirs are asked, and for how many seconds."""


def minilm_collection(cache: Path) -> tuple[Path, list[str]]:
    """A collection served by MiniLM's int8 export, and texts to ask it."""
    out = built(cache) / "minilm-int8"
    if not out.exists():
        rows = [Row(text, label, "made", at) for at, (text, label) in enumerate(texts(ROWS))]
        known = [Row(text, label, "held", at) for at, (text, label) in enumerate(texts(200, seed=5))]
        build_collection("minilm", rows, out, held=Held(known), backend="onnx-int8", workers=1)
    return out, [text.partition(", reference")[0] for text, _ in texts(ASKED, seed=9)]


def minilm(cache: Path, seconds: float, serving: Callable[..., Any], wrk: Callable[..., Any]) -> Any:
    """p50 in milliseconds, in turns: ours over HTTP with one client, theirs for `encode` alone at batch 1.

    The turns are short and many, and `times` is the median of their ratios: what else a host does changes within
    minutes by more than what is measured, but little from one second to the next.
    """
    out, asked = minilm_collection(cache)
    bodies = cache / "minilm.text"
    bodies.write_text("".join(json.dumps({"queries": [{"text": text}]}) + "\n" for text in asked))
    model = open_sentence_transformer("minilm")  # as people load it, float32 in torch: what the int8 export is to beat
    model.encode(asked[:3])

    def theirs() -> float:
        taken = []
        over = time.perf_counter() + TURN
        for text in asked:
            began = time.perf_counter()
            model.encode([text])
            taken.append(time.perf_counter() - began)
            if began > over:
                break
        return float(np.median(taken)) * 1000

    found: dict[str, list[float]] = {"ours_p50_ms": [], "theirs_p50_ms": []}
    with serving(out, "--cache-bytes", "0") as served:
        ours = wrk(served[0], "/v1/search", bodies, 0, "application/json", TURN)
        for _ in range(TURNS):
            found["ours_p50_ms"].append(ours(1)["p50_ms"])
            found["theirs_p50_ms"].append(theirs())
        many = wrk(served[0], "/v1/search", bodies, 0, "application/json", seconds)(32)
    times = statistics.median(mine / other for mine, other in zip(*found.values(), strict=True))
    medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
    runs = {name.replace("p50_", "p50s_"): values for name, values in found.items()}
    words = statistics.median(len(text.split()) for text in asked)
    return {
        **medians,
        **runs,
        "times": round(times, 3),
        "texts": f"support messages of {words:.0f} words",
        "32 clients": many,
    }
