"""Demo data: what people say to a smart home, drawn from the sentence templates of the package home-assistant-intents.

A template such as `<turn> on [<the>] {area} <light>` stands for thousands of sentences. We draw a few of each, and
split by template, so that no test sentence is a near-copy of one the encoder or the gallery has seen. Some intents
never enter the gallery: their sentences are the unknown queries, one set of intents to calibrate with and another one
to test with. Names of rooms and devices are made up here, since the package leaves them to the household.
"""

from __future__ import annotations

import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hassil.expression import Alternative, Expression, Group, ListReference, Permutation, RuleReference, TextChunk
from hassil.intents import Intents, RangeSlotList, SlotList, TextSlotList
from home_assistant_intents import get_intents

from index.data.rows import text_key

CALIBRATION_UNKNOWN = ("HassGetWeather", "HassShoppingListAddItem", "HassNevermind", "HassLawnMowerDock")
TEST_UNKNOWN = ("HassGetCurrentTime", "HassListRemoveItem", "HassBroadcast", "HassRespond", "HassLawnMowerStartMowing")
"""Intents outside the gallery. A query of theirs deserves "no match"; what tests is never what calibrated."""
LEFT_OUT = ("HassCancelAllTimers", "HassShoppingListCompleteItem", "HassListAddItem", "HassGetCurrentDate")
"""Nearly the same sentences as an intent above or in the gallery: whether they match is a matter of taste."""

TRIES = 8
"""Draws a wanted sentence: many draws of a small template repeat."""

_LISTS: dict[str, tuple[str, ...]] = {
    "area": ("kitchen", "living room", "bedroom", "bathroom", "office", "garage", "hallway", "dining room", "nursery"),
    "floor": ("ground", "first", "second", "upper", "basement"),
    "zone": ("school", "the gym", "work", "the allotment"),
    "message": ("dinner is ready", "we leave in ten minutes", "the parcel is here", "please come downstairs"),
    "search_query": ("jazz", "the morning news", "some piano music", "whale songs", "a bedtime story", "salsa"),
    "timer_name": ("pasta", "tea", "laundry", "egg", "pizza", "homework"),
    "timer_command": ("turn off the lamp", "open the blinds", "start the fan", "play jazz"),
    "shopping_list_item": ("milk", "two lemons", "washing powder", "bread", "olive oil", "apples"),
    "todo_list_item": ("call the dentist", "water the ferns", "fix the gate", "post the letters"),
}
_NAMES: dict[str, tuple[str, ...]] = {
    "Climate": ("thermostat", "heat pump", "radiator", "air conditioner"),
    "Fan": ("ceiling fan", "desk fan", "extractor fan"),
    "GetWeather": ("Lisbon", "Oslo", "Ghent", "the coast"),
    "LawnMower": ("mower", "lawn robot", "Shaun"),
    "Light": ("desk lamp", "bedside lamp", "fairy lights", "chandelier"),
    "List": ("errands", "garden", "weekend", "chores"),
    "Media": ("television", "soundbar", "kitchen radio", "record player"),
    "SetPosition": ("roller blind", "awning", "left curtain", "skylight"),
    "SetVolume": ("television", "soundbar", "kitchen radio", "record player"),
    "Vacuum": ("vacuum", "robot", "Dusty"),
    "": ("desk lamp", "coffee machine", "fountain", "porch light", "front door", "fairy lights", "heater", "fan"),
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One drawn sentence; `template` is intent:block:sentence, the unit of the split."""

    text: str
    label: str
    template: str


@dataclass(frozen=True, slots=True)
class DemoData:
    """Train rows are the gallery too; calibration and test hold known and unknown queries, from other templates."""

    train: list[Sentence]
    calibration: list[Sentence]
    test: list[Sentence]


def make_demo_data(*, train: int = 60, queries: int = 15, unknown: int = 40, seed: int = 0) -> DemoData:
    """Draws at most `train`, `queries` and `unknown` sentences of an intent for each part.

    A text that two intents share, or that occurs in an earlier part, is left out. Same arguments, same data.
    """
    generator = random.Random(seed)
    intents = Intents.from_dict(get_intents("en"))
    parts: dict[str, list[Sentence]] = {"train": [], "calibration": [], "test": []}
    for name in sorted(intents.intents):
        templates = _templates(intents, name)
        if name in LEFT_OUT:
            continue
        if name in CALIBRATION_UNKNOWN or name in TEST_UNKNOWN:
            part = "calibration" if name in CALIBRATION_UNKNOWN else "test"
            parts[part] += _draw_part(templates, unknown, generator)
            continue
        identifiers = sorted(templates)
        generator.shuffle(identifiers)
        fifth = len(identifiers) // 5 or len(identifiers) // 3  # 3 or 4 templates still give one to each query set
        sides = (identifiers[2 * fifth :], identifiers[:fifth], identifiers[fifth : 2 * fifth])
        for rows, ids, count in zip(parts.values(), sides, (train, queries, queries), strict=True):
            rows += _draw_part({i: templates[i] for i in ids}, count, generator)
    return _without_repeats(parts)


def write_demo_data(data: DemoData, folder: Path) -> dict[str, Path]:
    """Writes five CSV files (text,label,template) into `folder` and returns their paths by name.

    `train`, and the two query sets with known and unknown queries apart: `calibration`, `calibration_unknown`, `test`,
    `test_unknown`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gallery = {row.label for row in data.train}
    tables = {"train": data.train}
    for name, rows in (("calibration", data.calibration), ("test", data.test)):
        tables[name] = [row for row in rows if row.label in gallery]
        tables[f"{name}_unknown"] = [row for row in rows if row.label not in gallery]
    paths = {name: folder / f"{name}.csv" for name in tables}
    for name, rows in tables.items():
        with paths[name].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "template"])
            writer.writerows((row.text, row.label, row.template) for row in rows)
    return paths


def label_name(intent: str) -> str:
    """ "HassTurnOn" -> "turn on"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", intent.removeprefix("Hass")).lower()


class _Template:
    """One sentence template with the lists and rules in force where it stands."""

    def __init__(
        self, expression: Expression, intent: str, lists: Mapping[str, SlotList], rules: Mapping[str, Expression]
    ) -> None:
        self.intent = intent
        self._expression = expression
        self._lists = lists
        self._rules = rules
        self._names = next(names for part, names in _NAMES.items() if intent.startswith(f"Hass{part}"))

    def draw(self, generator: random.Random) -> str:
        """One random sentence, in single spaces."""
        return " ".join(self._draw(self._expression, generator).split())

    def _draw(self, expression: Expression, generator: random.Random) -> str:
        match expression:
            case TextChunk():
                return str(expression.original_text)
            case Alternative():
                return self._draw(generator.choice(expression.items), generator)
            case Permutation():
                return " ".join(
                    self._draw(item, generator) for item in generator.sample(expression.items, k=len(expression.items))
                )
            case Group():
                return "".join(self._draw(item, generator) for item in expression.items)
            case RuleReference():
                return self._draw(self._rules[expression.rule_name], generator)
            case ListReference():
                return self._draw_value(expression.list_name, generator)
        raise TypeError(f"hassil has an expression this program does not know: {type(expression).__name__}")

    def _draw_value(self, name: str, generator: random.Random) -> str:
        if name == "name":
            return generator.choice(self._names)
        if name in _LISTS:
            return generator.choice(_LISTS[name])
        values = self._lists[name]
        if isinstance(values, RangeSlotList):
            return str(generator.choice(range(values.start, values.stop + 1, values.step)))
        if isinstance(values, TextSlotList):
            return self._draw(generator.choice(values.values).text_in, generator)
        raise KeyError(f"home-assistant-intents has a list of free text this program has no values for: {name}")


def _templates(intents: Intents, name: str) -> dict[str, _Template]:
    templates = {}
    for b, block in enumerate(intents.intents[name].data):
        lists = {**intents.slot_lists, **block.slot_lists}
        rules = {
            rule: sentence.expression for rule, sentence in {**intents.expansion_rules, **block.expansion_rules}.items()
        }
        for s, sentence in enumerate(block.sentences):
            templates[f"{name}:{b}:{s}"] = _Template(sentence.expression, name, lists, rules)
    return templates


def _draw_part(templates: Mapping[str, _Template], count: int, generator: random.Random) -> list[Sentence]:
    """Up to `count` distinct sentences, as evenly over the templates as they allow."""
    drawn: dict[int, Sentence] = {}
    identifiers = sorted(templates)
    generator.shuffle(identifiers)
    for turn in range(TRIES * count):
        if len(drawn) == count or not identifiers:
            break
        identifier = identifiers[turn % len(identifiers)]
        text = templates[identifier].draw(generator)
        drawn.setdefault(text_key(text), Sentence(text, label_name(templates[identifier].intent), identifier))
    return list(drawn.values())


def _without_repeats(parts: Mapping[str, Sequence[Sentence]]) -> DemoData:
    labels: dict[int, set[str]] = defaultdict(set)
    for rows in parts.values():
        for row in rows:
            labels[text_key(row.text)].add(row.label)
    seen: set[int] = set()
    kept: dict[str, list[Sentence]] = {}
    for part, rows in parts.items():
        keys = [text_key(row.text) for row in rows]
        kept[part] = [row for row, key in zip(rows, keys, strict=True) if len(labels[key]) == 1 and key not in seen]
        seen.update(keys)
    sizes = Counter(row.label for row in kept["train"])
    return DemoData([row for row in kept["train"] if sizes[row.label] > 1], kept["calibration"], kept["test"])
