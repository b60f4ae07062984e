"""A small real collection for the service's tests: an encoder of 32 dimensions, ten intents, unknown questions.

The encoder is a static one written by hand (a word-level tokenizer and a table), so that building it takes no training
and no torch: a word's vector is its topic's direction plus noise, and words of no topic are noise alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from index.build import Held, build_collection
from index.data.rows import Row

DIMENSION = 32
TOPICS = {
    "light_on": ("turn on switch brighten", "light lamp bulb lights"),
    "temperature": ("how warm hot cold", "temperature degrees thermometer heat"),
    "timer": ("set start countdown minutes", "timer clock seconds alarm"),
    "door_open": ("open unlock lift enter", "door gate garage entrance"),
    "music": ("play listen hear start", "music song album playlist"),
    "shopping": ("add buy need get", "milk bread list groceries"),
    "weather": ("will rain snow sunny", "weather forecast umbrella wind"),
    "vacuum": ("clean sweep vacuum dust", "floor robot carpet dirt"),
    "volume": ("louder quieter mute raise", "volume sound speaker loud"),
    "blinds": ("lower raise close blinds", "curtain shutters blinds window"),
}
STRANGE = {
    "football": ("score won goal match", "football league team player"),
    "cooking": ("bake fry recipe boil", "pasta cake onion oven"),
    "money": ("pay owe invest transfer", "money bank shares loan"),
    "history": ("who ruled fought discovered", "king war empire century"),
}
PLACES = ("kitchen", "bedroom", "hall", "office")
XSS_TEXT = "<img src=x onerror=window.stolen=1> scripting"
XSS_LABEL = "<script>window.stolen=1</script>"


def _sentences(topics: dict[str, tuple[str, str]], places: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every verb with every noun of a topic in some place."""
    rows = []
    for label, (verbs, nouns) in topics.items():
        pairs = product(verbs.split(), nouns.split())
        rows += [(f"{verb} {noun} {places[at % len(places)]}", label) for at, (verb, noun) in enumerate(pairs)]
    return rows


_ALL = _sentences(TOPICS, PLACES)
GALLERY = [row for at, row in enumerate(_ALL) if at % 2 == 0] + [
    (XSS_TEXT, XSS_LABEL),
    (XSS_TEXT + " again", XSS_LABEL),
]
_HELD_OUT = [row for at, row in enumerate(_ALL) if at % 2 == 1]
CALIBRATION: list[tuple[str, str | None]] = [row for at, row in enumerate(_HELD_OUT) if at % 4 != 0]
KNOWN = [row for at, row in enumerate(_HELD_OUT) if at % 4 == 0]
_OUTSIDE = [text for text, _ in _sentences(STRANGE, PLACES)]
CALIBRATION += [(text, None) for at, text in enumerate(_OUTSIDE) if at % 3 != 0]
UNKNOWN = [text for at, text in enumerate(_OUTSIDE) if at % 3 == 0]


def write_encoder(folder: Path) -> Path:
    """A folder that is a static sentence-transformers model."""
    random = np.random.default_rng(7)
    words = ["[UNK]", *PLACES, "scripting", "again", "img", "src", "onerror", "window", "stolen", "x"]
    table = {word: 0.3 * random.standard_normal(DIMENSION) for word in words}
    for verbs, nouns in (TOPICS | STRANGE).values():
        topic = random.standard_normal(DIMENSION)
        for word in (*verbs.split(), *nouns.split()):
            table[word] = table.get(word, 0) + topic + 0.7 * random.standard_normal(DIMENSION)
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(table)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": np.stack(list(table.values())).astype(np.float32)}, folder / "model.safetensors")
    kinds = ("StaticEmbedding", "Normalize")
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.sentence_transformer.modules.{kind}"}
        for at, (kind, path) in enumerate(zip(kinds, ("", "1_Normalize"), strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def _rows(pairs: Iterable[tuple[str, str | None]]) -> list[Row]:
    return [Row(text, label, "rows.csv", line) for line, (text, label) in enumerate(pairs, start=2)]


def build(folder: Path, *, calibrated: bool) -> Path:
    """The collection `folder/home`, calibrated on held-out and unknown questions, or with too few of them."""
    encoder = write_encoder(folder / "encoder")
    known = [row for row in CALIBRATION if row[1]]
    unknown = [row for row in CALIBRATION if not row[1]]
    held = Held(_rows(known), _rows(unknown)) if calibrated else Held(_rows(known[:3]))
    build_collection(str(encoder), _rows(GALLERY), folder / "home", held=held)
    return folder / "home"
