"""`surematch push`: a trained encoder to the Hugging Face Hub, without the texts it was trained on unless asked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError of whichever client it uses
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
)

from index.encoders.files import RECORD, TRAINED_ROWS, encoder_files
from index.errors import EncoderError, SettingsError
from training.data.pairs import is_numbered
from training.parts.heads import HEAD
from training.reports.card import CARD
from training.runs.folder import EVALUATION, REPORT, read_record
from training.runs.run import CONFIG

Content = Path | bytes


def files_to_send(model: Path, *, with_texts: bool) -> dict[str, Content]:
    """What of `model` goes to the Hub: its path there, and the file or its bytes, sorted by path.

    Without `with_texts` the pages that quote rows stay behind, and `training.json` goes without its list of rows.
    Raises `EncoderError` for a folder that `surematch train` did not write, or whose classes are named by texts.
    """
    record = read_record(model)
    if record is None or not (model / CARD).is_file():
        raise EncoderError(f"{model} is not a folder that `surematch train` wrote. Give the folder named by its --out.")
    files: dict[str, Content] = {path.relative_to(model).as_posix(): path for path in encoder_files(model)}
    told = (REPORT, EVALUATION) if with_texts else ()
    files |= {name: model / name for name in (CARD, HEAD, TRAINED_ROWS, CONFIG, *told) if (model / name).is_file()}
    if not with_texts:
        record["data"]["report"] = []
        if (record.get("settings") or {}).get("pair_text") and not is_numbered(record["labels"]):
            raise EncoderError(
                f"{model}: trained on pairs by a version that named classes by texts of theirs. Train it again, or add "
                "--with-texts to send these."
            )
    files[RECORD] = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    return dict(sorted(files.items()))


def size(content: Content) -> int:
    """Bytes to send."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def send(files: Mapping[str, Content], repository: str, *, private: bool, api: HfApi | None = None) -> str:
    """Makes the repository if there is none, sends all files in one commit, and returns its address.

    Raises `SettingsError`: a wrong name, no token, no right to write, or no answer from the Hub.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SettingsError(f"{repository!r} is no repository of the Hub. Write it as OWNER/NAME.")
    api = api or HfApi(library_name="surematch")
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, operations, commit_message="Encoder trained with surematch")
    except (LocalTokenNotFoundError, HFValidationError) as error:
        raise SettingsError(f"The Hub was not asked: {error} Log in with `hf auth login`, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        said = " ".join(str(error).split())
        raise SettingsError(
            f"The Hub refused {repository}: {said}. Check that the token (`hf auth login`, or HF_TOKEN) "
            "may write there."
        ) from error
    except (HTTPError, OSError) as error:
        raise SettingsError(
            f"The Hub gave no answer: {error}. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and try again."
        ) from error
    return str(address)
