from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from index.data.rows import text_key
from training.demo_data import (
    CALIBRATION_UNKNOWN,
    LEFT_OUT,
    TEST_UNKNOWN,
    DemoData,
    label_name,
    make_demo_data,
    write_demo_data,
)


@pytest.fixture(scope="module")
def data() -> DemoData:
    return make_demo_data()


def test_no_template_straddles_two_parts(data: DemoData) -> None:
    train, calibration, test = ({row.template for row in part} for part in (data.train, data.calibration, data.test))
    assert not train & calibration
    assert not train & test
    assert not calibration & test


def test_no_text_occurs_twice() -> None:
    data = make_demo_data(train=300, queries=300)  # enough for different templates to give the same sentence
    keys = Counter(text_key(row.text) for row in [*data.train, *data.calibration, *data.test])
    assert keys.most_common(1)[0][1] == 1


def test_unknown_intents_never_enter_the_gallery_and_test_with_others_than_they_calibrate(data: DemoData) -> None:
    gallery = {row.label for row in data.train}
    calibrated = {row.label for row in data.calibration} - gallery
    tested = {row.label for row in data.test} - gallery
    assert calibrated == {label_name(intent) for intent in CALIBRATION_UNKNOWN}
    assert tested == {label_name(intent) for intent in TEST_UNKNOWN}
    assert not {label_name(intent) for intent in LEFT_OUT} & (gallery | calibrated | tested)


def test_sentences_are_fully_expanded(data: DemoData) -> None:
    for row in [*data.train, *data.calibration, *data.test]:
        assert row.text == " ".join(row.text.split())
        assert not set(row.text) & set("[](){}<>|")


def test_there_is_enough_to_learn_and_to_calibrate(data: DemoData) -> None:
    sizes = Counter(row.label for row in data.train)
    assert len(sizes) >= 25
    assert min(sizes.values()) >= 10
    assert max(sizes.values()) <= 60
    assert len(data.calibration) >= 400
    assert len(data.test) >= 400


def test_the_seed_decides_what_is_drawn(data: DemoData) -> None:
    assert make_demo_data() == data
    assert make_demo_data(seed=1).train != data.train


def test_files_keep_known_and_unknown_queries_apart(data: DemoData, tmp_path: Path) -> None:
    paths = write_demo_data(data, tmp_path / "data")
    labels = {}
    for name, path in paths.items():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows[0].keys() == {"text", "label", "template"}
        labels[name] = {row["label"] for row in rows}
    assert labels["calibration"] | labels["test"] <= labels["train"]
    assert not (labels["calibration_unknown"] | labels["test_unknown"]) & labels["train"]
    assert not labels["calibration_unknown"] & labels["test_unknown"]


def test_intents_are_named_in_words() -> None:
    assert label_name("HassClimateSetFanMode") == "climate set fan mode"
