"""Encoders: the numpy one equals sentence-transformers', and a fingerprint moves exactly when a vector would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from index.encoders import files as encoder_files
from index.encoders.by_name import check_encoder, load_encoder
from index.encoders.files import copy_encoder, fingerprint, open_sentence_transformer
from index.encoders.files import encoder_files as files_of
from index.encoders.text_encoders import SentenceEncoder, StaticEncoder
from index.errors import DataError, EncoderError
from tests.index.helpers import FILLERS, TOPICS, write_static

WORDS = [*FILLERS, *(word for topic in TOPICS.values() for word in topic), "Unheard", "ofé", "!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_static(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("prompt", [None, "where is "], ids=["no prompt", "default prompt"])
def test_the_numpy_encoder_equals_sentence_transformers(tmp_path: Path, prompt: str | None) -> None:
    made = write_static(tmp_path / "tiny", prompt=prompt)
    model, encoder = open_sentence_transformer(str(made)), load_encoder(made)
    assert isinstance(encoder, StaticEncoder)

    @settings(max_examples=30)
    @given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=5))
    def agree(texts: list[str]) -> None:
        vectors = encoder.encode(texts)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, model.encode(texts), atol=2e-6)
        np.testing.assert_allclose(SentenceEncoder(made).encode(texts), vectors, atol=2e-6)

    agree()
    assert encoder.encode([]).shape == SentenceEncoder(made).encode([]).shape == (0, 16)


def test_a_static_module_in_a_folder_of_its_own_is_found(copy: Path) -> None:
    expected = load_encoder(copy).encode(["card bank"])
    (copy / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (copy / name).rename(copy / "0_StaticEmbedding" / name)
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["path"] = "0_StaticEmbedding"
    (copy / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_array_equal(load_encoder(copy).encode(["card bank"]), expected)


def edit(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value, indent=1))

    return apply


def nudge(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")["embedding.weight"].copy()
    weights[3, 5] += 1e-6
    save_file({"embedding.weight": weights}, folder / "model.safetensors")


SENTENCE = "config_sentence_transformers.json"
MOVES: dict[str, Callable[[Path], object]] = {
    "weights": nudge,
    "tokenizer": edit("tokenizer.json", lambda value: value.update(normalizer=None)),
    "prompts": edit(SENTENCE, lambda value: value.update(prompts={"query": "find: "}, default_prompt_name="query")),
    "normalisation": edit("modules.json", lambda value: value.pop()),  # type: ignore[call-arg]
    "pooling": edit("1_Normalize/config.json", lambda value: value.update(pooling_mode="max")),
}
STAYS: dict[str, Callable[[Path], object]] = {
    "README": lambda folder: (folder / "README.md").write_text("a model card"),
    "README of a module": lambda folder: (folder / "1_Normalize" / "README.md").write_text("about"),
    "versions": edit(SENTENCE, lambda value: value.update(__version__={"transformers": "9"})),
    "order and spacing of keys": edit(SENTENCE, lambda value: value.update(prompts=value.pop("prompts"))),
    "training record": lambda folder: (folder / "training.json").write_text("{}"),
    "head": lambda folder: (folder / "head.safetensors").write_bytes(b"x"),
    "name": lambda folder: (folder / ".name").write_text("another"),
}


@pytest.mark.parametrize("change", MOVES.values(), ids=MOVES)
def test_what_moves_a_vector_moves_the_fingerprint(copy: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(copy)
    change(copy)
    assert fingerprint(copy) != before


@pytest.mark.parametrize("file", ["modules.json", SENTENCE, "1_Normalize/config.json"])
def test_endless_json_is_damage(copy: Path, file: str) -> None:
    (copy / file).write_text("[" * 200_000)
    with pytest.raises(EncoderError):
        fingerprint(copy)


@pytest.mark.parametrize("change", STAYS.values(), ids=STAYS)
def test_what_moves_no_vector_keeps_the_fingerprint(copy: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(copy)
    change(copy)
    assert fingerprint(copy) == before


def test_a_folder_whose_name_is_no_utf8_is_read_as_any_other(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(folder, moved)
    np.testing.assert_array_equal(load_encoder(moved).encode(["card bank"]), load_encoder(folder).encode(["card bank"]))


def test_a_copy_elsewhere_is_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    copy_encoder(folder, tmp_path / "deep" / "elsewhere")
    assert fingerprint(tmp_path / "deep" / "elsewhere") == fingerprint(folder)
    assert len(files_of(folder)) == len(files_of(tmp_path / "deep" / "elsewhere")) == 5


def spoil_weights(value: float) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")["embedding.weight"].copy()
        weights[2, 2] = value
        save_file({"embedding.weight": weights}, folder / "model.safetensors")

    return apply


def shorten(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": weights[:-1].copy()}, folder / "model.safetensors")


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN weights": (spoil_weights(float("nan")), "NaN or infinity"),
    "infinite weights": (spoil_weights(float("inf")), "NaN or infinity"),
    "fewer weights than tokens": (shorten, "do not belong together"),
    "weights cut short": (cut("model.safetensors"), "cannot be loaded"),
    "tokenizer cut short": (cut("tokenizer.json"), "cannot be loaded"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
    "configuration cut short": (cut(SENTENCE), "not valid JSON"),
    "no modules.json": (lambda folder: (folder / "modules.json").unlink(), "no readable modules.json"),
    "no module listed": (lambda folder: (folder / "modules.json").write_text("[]"), "no readable modules.json"),
    "pickled weights": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80"), "pickle can run code"),
    "pickle in a module": (lambda folder: (folder / "1_Normalize/p.bin").write_bytes(b"\x80"), "pickle can run code"),
    "a module outside": (
        edit("modules.json", lambda value: value[1].update(path="../../..")),  # type: ignore[index]
        "not part of the encoder",
    ),
    "an absolute module": (
        edit("modules.json", lambda value: value[1].update(path="/etc")),  # type: ignore[index]
        "not part of the encoder",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_encoder_is_refused_by_name(copy: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(copy)
    with pytest.raises(EncoderError, match=said) as error:
        load_encoder(copy)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["card", "bank", " \n"], "nothing to read in text 3"),
        (["card", "", "bank"], "nothing to read in text 2"),
        (["fine", "half \ud83d"], "Text 2 holds half of a surrogate pair at character 6"),
    ],
)
def test_a_text_that_gives_no_vector_is_named(folder: Path, texts: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_encoder(folder).encode(texts)


def test_an_encoder_that_gives_nan_is_refused(copy: Path) -> None:
    spoil_weights(float("nan"))(copy)
    with pytest.raises(EncoderError, match="NaN or infinity"):
        SentenceEncoder(copy).encode([" ".join(WORDS)])


def test_minilm_weights_are_checked_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not those weights")
    monkeypatch.setattr(encoder_files, "_package_folder", lambda package, encoder: tmp_path)
    with pytest.raises(EncoderError, match=r"SHA-256 is .* expected 53aa51172d14"):
        open_sentence_transformer("minilm")


def test_a_name_that_leads_nowhere_says_what_was_tried() -> None:
    with pytest.raises(EncoderError, match=r"No encoder 'no-such-encoder': it is no folder .* or 'sface'"):
        open_sentence_transformer("no-such-encoder")


@pytest.mark.parametrize("name", ["image", "timm:resnet18"])
def test_a_network_for_pictures_is_trained_first(name: str) -> None:
    with pytest.raises(EncoderError, match=f"`surematch train PEOPLE --encoder {name} --out models/people`"):
        check_encoder(name)


WITHOUT_TORCH = """
import importlib.abc, sys
from pathlib import Path
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "sentence_transformers", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from index.encoders.by_name import load_encoder
print(load_encoder(Path(sys.argv[1])).encode(["card bank"])[0].tolist())
"""


def test_a_static_encoder_needs_no_torch(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(json.loads(done.stdout), load_encoder(folder).encode(["card bank"])[0].tolist())
