"""The gallery that `bench_service.py` serves: clustered vectors as a real, calibrated collection.

A collection has an encoder, and its calibration queries are encoded by it. The encoder written here is a static one
whose vocabulary is the vectors themselves, one word each (`v17`, `q3`), so that the vectors take the ordinary way
through `build_collection`, and a text query costs what it costs with any static encoder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from benchmarks.kept import built
from index.build import Held, build_collection
from index.data.rows import Row

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
CENTRES, LABELS, UNKNOWN = 1000, 10, 2
"""Neighbourhoods, labels in each (the hundred nearest items of a query carry about ten), and labels in each of which
the gallery has no item, while queries do."""
HELD, ASKED = 2000, 2000


def vectors(size: int, dimension: int, seed: int = 0) -> tuple[Vectors, list[int], Vectors, list[int | None]]:
    """Unit vectors of the gallery (size, d) with their labels, and of HELD + ASKED queries with theirs (None: none)."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((CENTRES, 1, dimension), dtype=np.float32)
    means = centres + 0.4 * random.standard_normal((CENTRES, LABELS + UNKNOWN, dimension), dtype=np.float32)

    def around(centre: Ints, label: Ints) -> Vectors:
        found = means[centre, label] + 0.6 * random.standard_normal((len(label), dimension), dtype=np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    of_items = random.integers(0, CENTRES, size), random.integers(0, LABELS, size)
    count = HELD + ASKED
    of_queries = random.integers(0, CENTRES, count), random.integers(0, LABELS + UNKNOWN, count)
    names = [
        None if label >= LABELS else int(LABELS * centre + label) for centre, label in zip(*of_queries, strict=True)
    ]
    labels = (LABELS * of_items[0] + of_items[1]).tolist()
    indexed = set(labels)  # a small gallery has no item of some
    truth = [name if name in indexed else None for name in names]
    return around(*of_items), labels, around(*of_queries), truth


def write_encoder(folder: Path, table: dict[str, NDArray[np.float32]]) -> Path:
    """A static sentence-transformers folder that knows these words."""
    folder.mkdir(parents=True)
    words = {"[UNK]": np.zeros_like(next(iter(table.values()))), **table}
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": np.stack(list(words.values()))}, folder / "model.safetensors")
    kinds = (("StaticEmbedding", ""), ("Normalize", "1_Normalize"))
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.sentence_transformer.modules.{kind}"}
        for at, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def build(folder: Path, engine: str, size: int, dimension: int) -> tuple[Path, Vectors, Vectors]:
    """The collection (made once by this code), the gallery's vectors (size, d), and the ASKED queries' (n, d)."""
    items, labels, queries, truth = vectors(size, dimension)
    folder = built(folder)
    out = folder / f"{engine}-{size}-{dimension}"
    if not out.exists():
        encoder = folder / f"encoder-{size}-{dimension}"
        if not encoder.exists():
            table = {f"v{at}": vector for at, vector in enumerate(items)}
            shutil.rmtree(unfinished := encoder.with_suffix(".new"), ignore_errors=True)
            write_encoder(unfinished, table | {f"q{at}": vector for at, vector in enumerate(queries)})
            unfinished.rename(encoder)
        rows = [Row(f"v{at}", f"label {label}", "gallery", at) for at, label in enumerate(labels)]
        held = [Row(f"q{at}", f"label {truth[at]}", "held", at) for at in range(HELD) if truth[at] is not None]
        unknown = [Row(f"q{at}", None, "held", at) for at in range(HELD) if truth[at] is None]
        build_collection(str(encoder), rows, out, held=Held(held, unknown), engine=engine, workers=1)
    return out, items, queries[HELD:]
