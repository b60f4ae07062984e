"""Snapshots: whatever happens to the files, what is read is what was written, or it is refused by name."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import CollectionError
from index.storage import snapshot as module
from index.storage.snapshot import read_snapshot, write_snapshot

FILES = {"vectors.faiss": bytes(range(256)) * 40, "rows.i64": bytes(800), "calibration.json": b'{"a": 1}' * 30}


def write(root: Path, sequence: int, files: dict[str, bytes] | None = None) -> str:
    return write_snapshot(root, sequence=sequence, engine="faiss-flat", encoder="abc", files=files or FILES)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, str, str]:
    """A folder with an older and a newer snapshot."""
    root = tmp_path / "snapshots"
    return root, write(root, 1, {"vectors.faiss": b"older"}), write(root, 2)


def test_what_was_written_is_read(two: tuple[Path, str, str]) -> None:
    root, _, newer = two
    found, faults = read_snapshot(root)
    assert found is not None
    assert (found.name, found.sequence, found.files, faults) == (newer, 2, FILES, [])
    assert found.manifest["engine"] == "faiss-flat"
    assert found.manifest["encoder"] == "abc"
    assert (root / "CURRENT").read_text() == newer + "\n"


def test_only_two_are_kept_and_nothing_else_lies_around(tmp_path: Path) -> None:
    names = [write(tmp_path, sequence) for sequence in range(1, 6)]
    assert {path.name for path in tmp_path.iterdir()} == {"CURRENT", *names[-2:]}


def test_the_same_state_may_be_written_again(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 1)
    assert first != second
    found, faults = read_snapshot(tmp_path)
    assert found is not None
    assert (found.name, faults) == (second, [])


def forbid(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this name may be read. The tests may run as root, whom permissions do not stop."""

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Path, *given: Any, **how: Any) -> Any:
            if path.name == what:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *given, **how)

        return refuse

    for name in ("iterdir", "read_bytes", "read_text"):
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))


@pytest.mark.parametrize("what", ["snapshots", "CURRENT"])
def test_what_may_not_be_read_is_not_taken_for_absent(
    what: str, two: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, newer = two
    forbid(what, monkeypatch)
    found, faults = read_snapshot(root)
    assert (found.name if found else None) == (newer if what == "CURRENT" else None)
    place = root / "CURRENT" if what == "CURRENT" else root
    assert faults[0].startswith(f"{place}: cannot be read (Permission denied). Repair its permissions")


@pytest.mark.parametrize("what", ["snapshots", "manifest.json"])
def test_nothing_is_written_beside_snapshots_that_may_not_be_read(
    what: str, two: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer would make new items of them, which no snapshot belongs to, and put one of a newer version aside."""
    forbid(what, monkeypatch)
    with pytest.raises(CollectionError, match=rf"{what}: cannot be read \(Permission denied\)"):
        module.refuse_newer(two[0])


def flip(content: bytes, at: int, random: np.random.Generator) -> bytes:
    return content[:at] + bytes([content[at] ^ int(random.integers(1, 256))]) + content[at + 1 :]


def zero_page(content: bytes, at: int, random: np.random.Generator) -> bytes:
    return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]


MUTATIONS: dict[str, Callable[[bytes, int, np.random.Generator], bytes]] = {
    "flip a byte": flip,
    "truncate": lambda content, at, random: content[:at],
    "append": lambda content, at, random: content + random.bytes(1 + at % 9),
    "zero a page": zero_page,
    "swap halves": lambda content, at, random: content[at:] + content[:at],
}


@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_every_mutation_is_refused_by_name_and_the_older_one_serves(
    two: tuple[Path, str, str], name: str, mutate: Callable[[bytes, int, np.random.Generator], bytes]
) -> None:
    root, older, newer = two
    path = root / newer / name
    good = path.read_bytes()
    random = np.random.default_rng(len(name))
    tried = 0
    while tried < 20:
        bad = mutate(good, int(random.integers(0, len(good))), random)
        if bad == good:  # zeroing zeros, or swapping at zero
            if name == "rows.i64" and mutate is not flip:
                bad = good[:-8]
            else:
                continue
        tried += 1
        path.write_bytes(bad)
        found, faults = read_snapshot(root)
        assert found is not None
        assert (found.name, found.files) == (older, {"vectors.faiss": b"older"})
        assert any(str(path) in fault for fault in faults), faults
    path.write_bytes(good)
    assert read_snapshot(root)[1] == []


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(two: tuple[Path, str, str], name: str) -> None:
    root, older, newer = two
    (root / newer / name).unlink()
    found, faults = read_snapshot(root)
    assert found is not None
    assert found.name == older
    assert str(root / newer / name) in faults[0]


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe", b"../../elsewhere", b"000000000009-00000000"], ids=lambda c: repr(c)
)
def test_without_a_pointer_the_newest_intact_one_serves(two: tuple[Path, str, str], content: bytes | None) -> None:
    root, _, newer = two
    (root / "CURRENT").unlink()
    if content is not None:
        (root / "CURRENT").write_bytes(content)
    found, faults = read_snapshot(root)
    assert found is not None
    assert found.name == newer
    assert "CURRENT" in faults[0]


def test_the_pointer_decides_not_the_number(two: tuple[Path, str, str]) -> None:
    root, older, _ = two
    (root / "CURRENT").write_text(older + "\n")
    found, faults = read_snapshot(root)
    assert found is not None
    assert (found.name, faults) == (older, [])


def test_no_snapshot_at_all(tmp_path: Path) -> None:
    found, faults = read_snapshot(tmp_path / "nowhere")
    assert found is None
    assert "CURRENT" in faults[0]


def forge(root: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A snapshot whose manifest was changed by somebody who also knows how the folder is named."""
    name = write(root, 1)
    manifest = json.loads((root / name / "manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest).encode()
    folder = root / f"{1:012d}-{hashlib.sha256(text).hexdigest()[:8]}"
    shutil.move(root / name, folder)
    (folder / "manifest.json").write_bytes(text)
    (root / "CURRENT").write_text(folder.name)
    return folder


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", ".", "", "a/b", "a\0b"])
def test_a_manifest_reads_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "snapshots"
    secret = b"secret"
    entry = {"bytes": len(secret), "sha256": hashlib.sha256(secret).hexdigest()}
    forge(root, lambda manifest: manifest["files"].update({name: entry}))
    (root / "secret").write_bytes(secret)
    found, faults = read_snapshot(root)
    assert found is None
    assert "manifest.json" in faults[0]


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "newer format": lambda manifest: manifest.update(format=2),
    "no files": lambda manifest: manifest.pop("files"),
    "files a list": lambda manifest: manifest.update(files=[]),
    "sequence a word": lambda manifest: manifest.update(sequence="one"),
    "endless size": lambda manifest: manifest["files"]["rows.i64"].update(bytes=float("inf")),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    folder = forge(tmp_path, change)
    found, faults = read_snapshot(tmp_path)
    assert found is None
    assert str(folder / "manifest.json") in faults[0]


@pytest.mark.parametrize("fails_at", range(5), ids=lambda at: f"write {at}")
def test_an_interrupted_write_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    older = write(tmp_path, 1)
    real, count = module._write_durably, iter(range(99))

    def full(path: Path, content: bytes) -> None:
        if next(count) == fails_at:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(module, "_write_durably", full)
    with pytest.raises((OSError, CollectionError), match="No space left"):
        write(tmp_path, 2)
    found, faults = read_snapshot(tmp_path)
    assert found is not None
    assert (found.name, faults) == (older, [])
    whole = {path.name for path in tmp_path.iterdir()} - {older, "CURRENT"}
    assert whole == set() or fails_at == 4, "only a complete snapshot may stay behind"
    assert not [name for name in whole if name.startswith(".")]
