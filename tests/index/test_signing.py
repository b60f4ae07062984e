"""A key makes changed files unusable, checksums made anew or not; without one the same changes pass."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from index.collection import Collection
from index.encoders.files import fingerprint
from index.errors import CollectionError, SettingsError
from index.items.new_items import NewItem
from index.storage import folder as folder_module
from index.storage.signing import KEY
from index.storage.snapshot import sign
from index.verbs.cli_items import compact

SIGNATURE = "manifest.sig"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef" * 4)
    monkeypatch.setenv(KEY, str(path))
    return path


@pytest.fixture
def signed(copied: Path, key: Path) -> Path:
    """A collection whose every snapshot is signed."""
    compact([str(copied), "--sign", "--json"])
    compact([str(copied), "--json"])
    return copied


def current(path: Path) -> Path:
    return path / "snapshots" / (path / "snapshots" / "CURRENT").read_text().strip()


def forged(path: Path, name: str, content: bytes) -> None:
    """Changes a file of the current snapshot with all checksums right, as whoever may write to the folder can."""
    folder = current(path)
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(manifest, indent=2).encode()
    (folder / "manifest.json").write_bytes(text)
    renamed = folder.with_name(f"{folder.name.partition('-')[0]}-{hashlib.sha256(text).hexdigest()[:8]}")
    folder.rename(renamed)
    (path / "snapshots" / "CURRENT").write_text(renamed.name)
    for other in (path / "snapshots").glob("[0-9]*"):
        if other != renamed:
            shutil.rmtree(other)


def opened(path: Path) -> str:
    """The snapshot that is served."""
    found = Collection.open(path)
    try:
        found.search(["bank card"])
        return found.snapshot_id
    finally:
        found.close()


def test_a_signed_collection_is_served_written_to_and_compacted(
    signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Collection.open(signed, writable=True)
    live.upsert([NewItem("new", "card", "bank card chip")])
    name = live.snapshot()
    live.close()
    assert all((folder / SIGNATURE).is_file() for folder in (signed / "snapshots").glob("[0-9]*"))
    assert opened(signed) == name


@pytest.mark.parametrize("name", ["vectors.faiss", "rows.i64", "engine.json", "calibration.json", "labels.safetensors"])
def test_a_file_exchanged_together_with_its_manifest_is_refused(
    signed: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (current(signed) / name).read_bytes()
    if name == "calibration.json":  # one that lies: every probability would come out of it
        told = json.loads(content)
        told["temperatures"] = dict.fromkeys(told["temperatures"], 0.01)
        content = json.dumps(told).encode()
    else:
        content = content + b" " if name == "engine.json" else content
    forged(signed, name, content)
    manifest = current(signed) / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"created": "yesterday"}
    text = json.dumps(changed, indent=2).encode()
    manifest.write_bytes(text)
    renamed = manifest.parent.with_name(f"{manifest.parent.name[:12]}-{hashlib.sha256(text).hexdigest()[:8]}")
    manifest.parent.rename(renamed)
    (signed / "snapshots" / "CURRENT").write_text(renamed.name)
    with pytest.raises(CollectionError, match=r"manifest\.json: its signature is not that of the key"):
        opened(signed)
    with pytest.raises(CollectionError, match=r"signature"):
        Collection.open(signed, writable=True)
    monkeypatch.delenv(KEY)
    assert opened(signed) == renamed.name, "without a key, checksums made anew are believed"


def test_without_a_signature_or_with_another_key_nothing_is_served(signed: Path, key: Path) -> None:
    for folder in (signed / "snapshots").glob("[0-9]*"):
        (folder / SIGNATURE).rename(folder / "kept")
    with pytest.raises(CollectionError, match=r"is not signed .*surematch compact COLLECTION --sign"):
        opened(signed)
    for folder in (signed / "snapshots").glob("[0-9]*"):
        (folder / "kept").rename(folder / SIGNATURE)
    name = opened(signed)
    key.write_text("f" * 64)
    with pytest.raises(CollectionError, match="its signature is not that of the key"):
        opened(signed)
    compact([str(signed), "--sign", "--json"])
    assert opened(signed) != name


def test_who_begins_to_sign_or_changes_the_key_keeps_every_calibration(
    copied: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(*, compacts: bool) -> set[str]:
        with closing(Collection.open(copied, writable=True, compacts=False)) as live:
            if compacts:
                live.snapshot()
            return {version.id for version in live.calibrations()}

    monkeypatch.delenv(KEY)
    with closing(Collection.open(copied, writable=True, compacts=False)) as live:
        made = {str(live.state.calibration_id), live.recalibrate(feedback=False).id}
        live.upsert([NewItem("new", "card", "my bank card chip")])
    made |= kept(compacts=True)
    assert len(made) >= 2
    for secret in ("e" * 64, "f" * 64):
        monkeypatch.setenv(KEY, str(key))
        key.write_text(secret)
        compact([str(copied), "--sign", "--json"])
        assert kept(compacts=False) >= made
        monkeypatch.delenv(KEY)
        kept(compacts=True)  # by somebody who forgot the key, and can read none of them
        monkeypatch.setenv(KEY, str(key))
        compact([str(copied), "--sign", "--json"])
        assert kept(compacts=False) >= made


def test_a_damaged_signed_snapshot_is_not_rebuilt_from_items_that_are_not_signed(signed: Path) -> None:
    for folder in (signed / "snapshots").glob("[0-9]*"):
        (folder / "vectors.faiss").write_bytes(b"x")
    with pytest.raises(CollectionError, match=r"vectors\.faiss.*not served"):
        opened(signed)


def test_damage_is_not_signed(copied: Path, key: Path) -> None:
    (current(copied) / "rows.i64").write_bytes(b"x")
    with pytest.raises(CollectionError, match=r"rows\.i64"):
        compact([str(copied), "--sign", "--json"])
    assert not list(copied.rglob(SIGNATURE))


def test_an_encoder_that_nobody_signed_is_not_loaded(signed: Path, monkeypatch: pytest.MonkeyPatch, key: Path) -> None:
    """Whoever may write to the folder can name another encoder in `collection.json`, with the right digest."""
    loaded: list[Path] = []
    load = folder_module.load_encoder
    monkeypatch.setattr(folder_module, "load_encoder", lambda path: loaded.append(path) or load(path))
    weights = next((signed / "encoder").rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CollectionError, match=r"this encoder .* is not the one the collection was built with"):
        Collection.open(signed)
    config = json.loads((signed / "collection.json").read_text())
    (signed / "collection.json").write_text(json.dumps(config | {"encoder": fingerprint(signed / "encoder")}))
    for writable in (False, True):
        with pytest.raises(CollectionError, match=r"collection\.json: is damaged"):
            Collection.open(signed, writable=writable)
    assert loaded == []


def test_collection_json_belongs_to_the_snapshot(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = signed / "collection.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": "sq8"}))
    with pytest.raises(CollectionError, match=r"collection\.json: is damaged"):
        opened(signed)
    monkeypatch.delenv(KEY)
    found = Collection.open(signed)
    assert any("collection.json: is damaged" in said for said in found.warnings)
    found.close()


def test_a_chosen_calibration_must_be_signed(signed: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY)
    shutil.rmtree(signed / "calibrations", ignore_errors=True)
    live = Collection.open(signed, writable=True)
    chosen = live.calibrations()[0].id
    live.upsert([NewItem("new", "card", "bank card chip")])
    live.snapshot()
    assert live.state.calibration_id != chosen
    live.use_calibration(chosen)
    assert live.state.calibration_id == chosen
    live.close()
    monkeypatch.setenv(KEY, str(key))
    sign(signed / "snapshots")
    found = Collection.open(signed)
    assert found.state.calibration_id != chosen
    assert any("does not match" in said for said in found.warnings)
    found.close()


@pytest.mark.parametrize("content", [None, b"", b"short", b" " * 40])
def test_a_useless_key_file_is_refused(copied: Path, key: Path, content: bytes | None) -> None:
    key.unlink()
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(SettingsError, match=KEY):
        compact([str(copied), "--sign", "--json"])
    with pytest.raises((SettingsError, CollectionError), match=KEY):
        Collection.open(copied)


def test_signing_needs_a_key(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(SettingsError, match="--sign"):
        compact([str(copied), "--sign", "--json"])
