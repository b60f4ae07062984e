"""From a sentence-transformers folder to one that serves without torch, verified on real texts as it is made.

The whole chain is exported (transformer, pooling, projections, normalisation), so that one file maps token ids to unit
vectors; in networks of BERT's kind attention, normalisation and activation become one operator each, as ONNX Runtime
has them. `onnx` keeps float32 and gives the same vectors; `onnx-int8` stores each weight matrix in 8 bits, with a scale
for every output channel (one for the whole matrix loses too much), and moves them: DESIGN's figures are cosine .993.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from index.encoders.files import (
    ONNX_MODEL,
    ONNX_RECORD,
    copy_encoder,
    modality_of,
    module_kinds,
    open_sentence_transformer,
)
from index.encoders.onnx_encoder import OnnxEncoder, need_onnxruntime
from index.encoders.text_encoders import SentenceEncoder
from index.errors import EncoderError

Backend = Literal["auto", "torch", "onnx", "onnx-int8"]
LEAST_AGREEMENT = 0.99
"""Mean cosine to torch's vectors below which an export is refused."""
_OPSET = 17
_KNOWN_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_FUSED = {"bert", "roberta", "xlm-roberta", "camembert", "electra"}
"""Architectures whose attention, normalisation and activation ONNX Runtime has single operators for."""


def install_encoder(
    source: Path, target: Path, backend: Backend, texts: Sequence[str], least: float = LEAST_AGREEMENT
) -> list[str]:
    """Puts the encoder in `source` into the new folder `target`, exported as `backend` says; returns what to tell.

    `auto` exports to float32 where ONNX Runtime is installed and the encoder is one that needs torch, and keeps torch
    where the export fails. Static encoders need neither. Raises `EncoderError` when the export was asked for by name
    and fails, or agrees less than `least` on `texts`.
    """
    if modality_of(str(source)) == "image":
        _check_unneeded(least)
        if backend in ("onnx", "onnx-int8"):
            raise EncoderError(
                f"--backend {backend}: {source} takes pictures, which is not exported. Use --backend auto."
            )
        copy_encoder(source, target)
        return []
    static = module_kinds(source)[0] == "StaticEmbedding"
    exported = (source / ONNX_RECORD).is_file()
    if backend in ("onnx", "onnx-int8") and (static or exported):
        what = "is a static encoder, which is served by numpy" if static else "was exported before"
        raise EncoderError(f"--backend {backend}: this one {what}. Leave --backend auto.")
    if backend == "torch" or static or exported or (backend == "auto" and not _can_export()):
        _check_unneeded(least)
        copy_encoder(source, target)
        return []
    try:
        agreement = export(source, target, backend == "onnx-int8", texts, least)
    except EncoderError as error:
        if backend != "auto":
            raise
        for path in sorted(target.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        copy_encoder(source, target)
        return [f"The encoder is served by torch: {error}"]
    return [
        f"The encoder was exported to ONNX ({agreement['precision']}). Cosine to torch's vectors on "
        f"{agreement['texts']} of these texts: mean {agreement['mean']:.6f}, least {agreement['min']:.6f}."
    ]


def export(source: Path, target: Path, int8: bool, texts: Sequence[str], least: float) -> dict[str, Any]:
    """Exports `source` to the folder `target`; returns the agreement with torch on `texts`. Raises `EncoderError`."""
    need_onnxruntime()
    if find_spec("onnx") is None:
        raise EncoderError("Exporting needs the package onnx. Install it with: pip install 'surematch[onnx]'")
    copy_encoder(source, target)
    reference = SentenceEncoder(source)
    record = _write_model(source, target / ONNX_MODEL, int8)
    for weights in target.glob("model*.safetensors*"):
        weights.unlink()
    record["sha256"] = hashlib.sha256((target / ONNX_MODEL).read_bytes()).hexdigest()
    (target / ONNX_RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
    cosines = np.einsum("ij,ij->i", reference.encode(texts), OnnxEncoder(target).encode(texts))
    agreement = {
        "texts": len(cosines),
        "mean": float(cosines.mean()),
        "min": float(cosines.min()),
        "precision": record["precision"],
    }
    if not agreement["mean"] >= least:
        raise EncoderError(
            f"The {record['precision']} export of {source} agrees with torch at a mean cosine of "
            f"{agreement['mean']:.4f} (least {agreement['min']:.4f}) on {len(cosines)} texts, expected at "
            f"least {least}. Use --backend onnx or torch, or accept it with --least-agreement."
        )
    (target / ONNX_RECORD).write_text(json.dumps({**record, "agreement": agreement}, indent=2), encoding="utf-8")
    return agreement


def _check_unneeded(least: float) -> None:
    """Raises `EncoderError` where an agreement is asked for, and nothing is exported that could agree."""
    if least != LEAST_AGREEMENT:
        raise EncoderError("--least-agreement: nothing is exported to ONNX here, so nothing agrees. Leave it away.")


def _can_export() -> bool:
    return all(find_spec(package) is not None for package in ("torch", "onnx", "onnxruntime"))


def _write_model(source: Path, path: Path, int8: bool) -> dict[str, Any]:
    import torch
    from onnx import load

    model = open_sentence_transformer(str(source)).eval()
    network = _spell_out(model)
    example = model.tokenizer(["one", "two or more words"], padding=True, return_tensors="pt")
    names = [name for name in example if name in _KNOWN_INPUTS]
    if "input_ids" not in names or not (source / "tokenizer.json").is_file():
        raise EncoderError(f"{source}: has no tokenizer.json, which serving without torch needs. Use --backend torch.")

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, *fields: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.encoder(dict(zip(names, fields, strict=True)))["sentence_embedding"]
            return found

    axes = {**{name: {0: "batch", 1: "tokens"} for name in names}, "embedding": {0: "batch"}}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        whole = Path(folder) / ONNX_MODEL if int8 else path
        try:
            torch.onnx.export(
                Graph(),
                tuple(example[name] for name in names),
                str(whole),
                input_names=names,
                output_names=["embedding"],
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,  # the newer exporter needs a graph without Python control flow, which these do not have
            )
            if network is not None:
                from onnxruntime.transformers.fusion_options import FusionOptions
                from onnxruntime.transformers.optimizer import optimize_model

                heads, width = network.config.num_attention_heads, network.config.hidden_size
                fused = FusionOptions("bert")
                fused.enable_skip_layer_norm = False  # slower than its parts, see `inference_session`
                # opt_level 0: what needs no knowledge of the architecture is left to the session that loads it
                better = optimize_model(
                    str(whole), "bert", num_heads=heads, hidden_size=width, optimization_options=fused, opt_level=0
                )
                better.save_model_to_file(str(whole))
            if int8:
                from onnx import TensorProto
                from onnxruntime.quantization import QuantType, quantize_dynamic

                options = {"DefaultTensorType": TensorProto.FLOAT}  # of what the fused operators, unknown to onnx, give
                quantize_dynamic(
                    str(whole), str(path), per_channel=True, weight_type=QuantType.QInt8, extra_options=options
                )
            names = [field.name for field in load(path).graph.input]  # those that the network really reads
        except Exception as error:  # the exporter raises many unrelated types
            raise EncoderError(f"{source}: the export to ONNX failed ({error}). Use --backend torch.") from error
    return {
        "precision": "int8" if int8 else "fp32",
        "inputs": names,
        "pad": int(model.tokenizer.pad_token_id or 0),
        "max_tokens": int(model.max_seq_length or 0),
        "dimension": int(model.get_embedding_dimension() or 0),
    }


def _spell_out(model: Any) -> Any:
    """The network, told to write its attention step by step, as ONNX Runtime knows it; None if not of that kind."""
    network = next((module.model for module in model if hasattr(module, "model")), None)
    if network is None or getattr(network.config, "model_type", None) not in _FUSED:
        return None
    network.set_attn_implementation("eager")
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of every Python condition it passes; whether the graph is right is measured afterwards."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
