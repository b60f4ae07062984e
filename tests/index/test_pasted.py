"""Commands in messages can be pasted, wherever the collection lies."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from index.backup import copy_collection
from index.collection import Collection
from index.errors import CollectionError
from index.verbs.cli_items import delete


def lost(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    Collection.open(path)


def in_replacement(path: Path) -> None:
    path.rename(path.with_name(f".{path.name}-old"))
    Collection.open(path)


def copied_torn(path: Path) -> None:
    file = min(path.glob("snapshots/0*/vectors*"))
    file.write_bytes(file.read_bytes()[:-1] + b"#")
    copy_collection(path, path.with_name("copy"), lambda *told: None)


def chosen_unclear(path: Path) -> None:
    (path / "calibrations").mkdir(exist_ok=True)
    (path / "calibrations" / "CURRENT").write_text("{")
    opened = Collection.open(path)
    opened.close()
    raise CollectionError(" ".join(opened.warnings))


@pytest.mark.parametrize(
    ("fault", "command"),
    [
        (lost, "surematch index MODEL DATA --out {}"),
        (in_replacement, "mv {.-old} {}"),
        (copied_torn, "surematch compact {}"),
        (chosen_unclear, "surematch calibrations {} --use ID."),
    ],
)
def test_what_mends_a_collection_can_be_pasted(
    fault: Callable[[Path], None], command: str, built: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(built, tmp_path / "my col; rm"))
    with pytest.raises(CollectionError) as caught:
        fault(path)
    old = shlex.quote(str(path.with_name(f".{path.name}-old")))
    assert command.replace("{.-old}", old).replace("{}", shlex.quote(str(path))) in str(caught.value)


def test_what_erases_deleted_items_can_be_pasted(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(built, tmp_path / "my col"))
    opened = Collection.open(path)
    id = opened.search(["my card"])[0].hits[0].id
    opened.close()
    assert delete([str(path), id]) == 0
    assert shlex.split(capsys.readouterr().out.split("`")[1]) == ["surematch", "compact", str(path)]
