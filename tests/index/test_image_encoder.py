"""The network encoder: saved and loaded as one folder, the same vectors, clear words for what it cannot take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from index.build import build_collection
from index.collection import Collection
from index.data.picture import Picture
from index.encoders.by_name import load_encoder
from index.encoders.files import fingerprint, modality_of, open_sentence_transformer
from index.encoders.image_encoder import image_encoder
from index.encoders.image_network import ImageNetwork, standardised
from index.encoders.pictures import read_pictures
from index.errors import DataError, EncoderError
from tests.index.helpers import write_static
from tests.pictures import digit, packed, write_digits


def save(network: ImageNetwork, folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=[network], device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(ImageNetwork(size=24, width=8, dimension=16), tmp_path_factory.mktemp("encoder") / "small")


def test_the_folder_is_the_encoder(folder: Path) -> None:
    assert modality_of(str(folder)) == "image"
    encoder = image_encoder(load_encoder(folder))
    assert (encoder.modality, encoder.dimension, encoder.fingerprint) == ("image", 16, fingerprint(folder))
    files = [packed(digit(at, 0)) for at in range(5)]
    vectors = encoder.encode_images(files)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    by_library = open_sentence_transformer(str(folder)).encode([digit(at, 0) for at in range(5)])
    np.testing.assert_allclose(vectors, by_library / np.linalg.norm(by_library, axis=1, keepdims=True), atol=1e-6)
    assert not list(folder.rglob("*.bin"))


def test_paths_and_bytes_and_batches_give_the_same_vectors(folder: Path, tmp_path: Path) -> None:
    encoder = image_encoder(load_encoder(folder))
    files = [packed(digit(at % 10, at)) for at in range(70)]
    for at, content in enumerate(files):
        (tmp_path / f"{at}.png").write_bytes(content)
    together = encoder.encode_images(files)
    np.testing.assert_array_equal(encoder.encode_images([tmp_path / f"{at}.png" for at in range(70)]), together)
    np.testing.assert_allclose(
        np.concatenate([encoder.encode_images([content]) for content in files[:5]]), together[:5], atol=1e-5
    )


def test_the_fingerprint_moves_with_the_weights(folder: Path, tmp_path: Path) -> None:
    other = save(ImageNetwork.load(str(folder)), tmp_path / "other")
    assert fingerprint(other) == fingerprint(folder)
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, other / "model.safetensors")
    assert fingerprint(other) != fingerprint(folder)


def test_what_it_cannot_take_is_said(folder: Path, tmp_path: Path) -> None:
    encoder = image_encoder(load_encoder(folder))
    with pytest.raises(DataError, match="Picture 2: The picture cannot be decoded"):
        encoder.encode_images([packed(digit(0, 0)), b"nonsense"])
    with pytest.raises(DataError, match=r"^The picture cannot be decoded"):
        encoder.encode_images([b"nonsense"])
    missing = tmp_path / "missing.png"
    for image in (missing, Picture(missing, "missing")):
        with pytest.raises(DataError, match=rf"^{re.escape(str(missing))}: cannot be read \(No such file"):
            encoder.encode_images([image, packed(digit(0, 0))])
    with pytest.raises(DataError, match="cannot be asked with a text"):
        encoder.encode(["hello"])
    with pytest.raises(DataError, match="cannot be asked with a picture"):
        image_encoder(load_encoder(write_static(tmp_path / "static")))


def test_damaged_folders_are_encoder_errors(folder: Path, tmp_path: Path) -> None:
    damaged = save(ImageNetwork.load(str(folder)), tmp_path / "damaged")
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(damaged)
    (damaged / "model.safetensors").write_bytes(whole)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"size": 100_000}))
    with pytest.raises(EncoderError, match="size 100000"):
        load_encoder(damaged)


def test_weights_that_are_no_numbers_are_the_encoders_fault(folder: Path, tmp_path: Path) -> None:
    spoilt = save(ImageNetwork.load(str(folder)), tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    next(some for some in weights.values() if some.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, spoilt / "model.safetensors")
    with pytest.raises(EncoderError, match="NaN or infinity"):
        load_encoder(spoilt)


def test_a_module_that_a_folder_brings_never_runs(folder: Path, tmp_path: Path) -> None:
    own = save(ImageNetwork.load(str(folder)), tmp_path / "own")
    (own / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass ImageNetwork: ...\n")
    modules = json.loads((own / "modules.json").read_text())
    modules[0]["type"] = "evil.ImageNetwork"
    (own / "modules.json").write_text(json.dumps(modules))
    load_encoder(own)
    assert not (tmp_path / "ran").exists()


def test_figures_out_of_range_are_refused() -> None:
    for wrong in ({"size": 8}, {"channels": 2}, {"width": 1}, {"dimension": 1}, {"backbone": "vgg"}):
        with pytest.raises(EncoderError):
            ImageNetwork(**wrong)  # type: ignore[arg-type]


def test_light_and_contrast_do_not_move_the_input() -> None:
    pictures = torch.rand(3, 1, 8, 8) * 200
    torch.testing.assert_close(standardised(0.5 * pictures + 40), standardised(pictures), atol=0.05, rtol=0)
    assert not standardised(torch.full((1, 1, 4, 4), 255.0)).any()


def test_any_shape_fits_whole() -> None:
    network = ImageNetwork(size=20, channels=3, width=4, dimension=8)
    wide = network.square(digit(1, 0).resize((80, 20)))
    assert (wide.size, wide.mode) == ((20, 20), "RGB")
    assert {wide.getpixel((10, 0)), wide.getpixel((10, 19))} == {(127, 127, 127)}


def test_timm_backbones() -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        with pytest.raises(EncoderError, match="needs the package timm"):
            ImageNetwork(backbone="timm:resnet18")
        pytest.skip(f"timm cannot be imported here ({error}): its backbones were not tested")
    network = ImageNetwork(backbone="timm:resnet18", size=32, channels=3, dimension=16).eval()
    features = network(network.preprocess([digit(0, 0), digit(1, 0)]))
    assert features["sentence_embedding"].shape == (2, 16)


def test_a_collection_of_pictures(folder: Path, tmp_path: Path) -> None:
    """Even an untrained network finds the picture itself; the pictures are not kept."""
    rows = read_pictures([write_digits(tmp_path / "digits", range(4), range(6))], text="text", label="label")
    built = build_collection(str(folder), rows, tmp_path / "c")
    assert built["encoder"]["modality"] == "image"
    collection = Collection.open(tmp_path / "c")
    (answer,) = collection.search_images([tmp_path / "digits" / "d2" / "003.png"], k=3)
    assert (answer.hits[0].id, answer.hits[0].label, answer.hits[0].text) == ("d2/003.png", "d2", None)
    with pytest.raises(DataError, match="cannot be asked with a text"):
        collection.search(["a text"])
    collection.close()
    stored = (tmp_path / "c" / "items.sqlite").read_bytes()
    assert b"PNG" not in stored
    assert b"sha256:" not in stored
