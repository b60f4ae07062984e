"""Folders, zips and tables of pictures as rows; and faults in them."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import stat
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest

from index.data.confined import BELOW
from index.data.rows import Row
from index.encoders.pictures import picture_of, read_pictures
from index.errors import DataError, NoLabelColumn
from tests.pictures import digit, packed, write_digits

HOW = {"text": "text", "label": "label"}


def read(path: Path, **how: object) -> list[Row]:
    return read_pictures([path], **HOW | how)  # type: ignore[arg-type]


def test_a_folder_an_identity(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "people", range(3), range(2))
    (folder / ".DS_Store").write_bytes(b"left by a file manager")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "x.PNG").write_bytes(packed(digit(9, 0)))
    rows = read(folder)
    assert [(row.label, picture_of(row).name) for row in rows] == [
        *((f"d{label}", f"d{label}/{which:03d}.png") for label in range(3) for which in range(2)),
        ("deep/er", "deep/er/x.PNG"),
    ]
    content = (folder / "d0" / "000.png").read_bytes()
    assert rows[0].text == "sha256:" + hashlib.sha256(content).hexdigest()
    assert picture_of(rows[0]).read() == content
    assert rows[0].file == str(folder / "d0" / "000.png")


def zipped(folder: Path, to: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return to


@pytest.mark.parametrize("prefix", ["", "people/"])
def test_a_zip_is_read_as_the_folder_it_was_made_of(tmp_path: Path, prefix: str) -> None:
    folder = write_digits(tmp_path / "people", range(3), range(2))
    inside, outside = read(zipped(folder, tmp_path / "people.zip", prefix)), read(folder)
    assert [(row.text, row.label, picture_of(row).name) for row in inside] == [
        (row.text, row.label, picture_of(row).name) for row in outside
    ]
    assert [picture_of(row).read() for row in inside] == [picture_of(row).read() for row in outside]


@pytest.mark.parametrize("column", ["path", "text", "photo"])
def test_a_table_of_paths_and_labels(tmp_path: Path, column: str) -> None:
    write_digits(tmp_path / "scans", range(2), range(2))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [[column, "label", "camera"], ["scans/d0/000.png", "zero", "a"], ["scans/d1/001.png", "one", "b"]]
        )
    rows = read(tmp_path / "rows.csv", text="photo" if column == "photo" else "text")
    assert [(row.label, row.line, row.extra, picture_of(row).name) for row in rows] == [
        ("zero", 2, {"camera": "a"}, "scans/d0/000.png"),
        ("one", 3, {"camera": "b"}, "scans/d1/001.png"),
    ]
    assert picture_of(rows[1]).read() == (tmp_path / "scans/d1/001.png").read_bytes()


def test_a_column_may_be_called_fault(tmp_path: Path) -> None:
    write_digits(tmp_path / "scans", range(2), range(1))
    (tmp_path / "rows.csv").write_text("path,label,fault\nscans/d0/000.png,zero,none\nscans/d1/000.png,one,none\n")
    rows = read(tmp_path / "rows.csv")
    assert [(row.label, row.extra, row.fault) for row in rows] == [
        ("zero", {"fault": "none"}, None),
        ("one", {"fault": "none"}, None),
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["text,who", "a.png,ann"], "line 2 has no column 'label'; it has 'text', 'who'"),
        (["text,label", "a.png"], "line 2 has 1 fields, the header has 2"),
        (["path,who", "a.png,ann"], "line 2 has no column 'label'; it has 'path', 'who'"),
        (["photo,label", "a.png,ann"], "line 2 has no column 'text'; it has 'photo', 'label'.*--text COLUMN"),
        (["path,text,who", "a.png,b,ann"], "line 2 has no column 'label'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_as_it_is(tmp_path: Path, lines: list[str], said: str) -> None:
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=said) as refused:
        read(tmp_path / "rows.csv", text="text")
    assert isinstance(refused.value, NoLabelColumn) == ("no column 'label'" in said)


def faulty_folder(tmp_path: Path) -> Path:
    folder = write_digits(tmp_path / "people", range(2), range(2))
    (folder / "d0" / "cut.png").write_bytes(packed(digit(0, 5))[:-40])
    (folder / "d0" / "empty.jpg").write_bytes(b"")
    (folder / "d1" / "notes.txt").write_text("hello")
    (folder / "d1" / "moving.gif").write_bytes(
        packed(digit(1, 0), "GIF", save_all=True, append_images=[digit(2, 0), digit(3, 0)])
    )
    (folder / "nobody.png").write_bytes(packed(digit(0, 6)))
    return folder


FAULTS = {
    "cut.png": "cannot be decoded",
    "empty.jpg": "0 bytes",
    "notes.txt": "not a picture by its name",
    "moving.gif": "3 frames",
    "nobody.png": "lies in no folder",
}


def test_every_faulty_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^5 files cannot be used") as caught:
        read(faulty_folder(tmp_path))
    for name, why in FAULTS.items():
        assert name in str(caught.value)
        assert why in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "people/"])
def test_a_person_without_a_picture_is_told_of(prefix: str, tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "people", range(2), range(2))
    (folder / "anna").mkdir()
    (folder / "bob" / "young").mkdir(parents=True)
    (folder / "bob" / "young" / "Thumbs.db").write_bytes(b"left behind")
    with zipfile.ZipFile(zipped(folder, tmp_path / "people.zip", prefix), "a") as archive:
        for name in ("", "d0/", "anna/", "bob/", "bob/young/"):
            if prefix + name:
                archive.mkdir(prefix + name)
    for path in (folder, tmp_path / "people.zip"):
        with pytest.raises(DataError, match=r"^2 files cannot be used: .*anna/?: a folder without a picture"):
            read(path)
        faulty: list[Row] = []
        assert len(read_pictures([path], text="text", label="label", faulty=faulty)) == 4
        assert [row.label for row in faulty] == ["anna", "bob/young"]


class _Unmarked(zipfile.ZipInfo):
    """A member whose name is in `encoding`, with nothing said about it: as macOS and Linux write UTF-8."""

    encoding = "utf-8"

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(self.encoding), self.flag_bits


def test_names_in_a_zip_are_read_as_macos_and_linux_write_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as archive:
        for at, person in enumerate(("Zoë", unicodedata.normalize("NFD", "Müller"))):
            archive.writestr(_Unmarked(f"{person}/é.png"), packed(digit(at, 0)))
        archive.writestr("Günther/é.png", packed(digit(2, 0)))  # marked as UTF-8
    rows = read(tmp_path / "people.zip")
    assert {row.label for row in rows} == {"Zoë", "Müller", "Günther"}
    assert all(row.image.read() for row in rows)


def test_names_in_another_encoding_are_refused(tmp_path: Path) -> None:
    member = _Unmarked("Zoë/0.png")
    member.encoding = "cp437"
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as archive:
        archive.writestr(member, packed(digit(0, 0)))
    with pytest.raises(DataError, match="not in UTF-8"):
        read(tmp_path / "people.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_may_name_a_folder_twice_and_the_root(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "people", range(2), range(2))
    with zipfile.ZipFile(zipped(folder, tmp_path / "people.zip"), "a") as archive:
        for name in ("/", "anna/", "anna/", "d0/", "d0/"):
            archive.writestr(zipfile.ZipInfo(name), b"")
    faulty: list[Row] = []
    assert len(read_pictures([tmp_path / "people.zip"], text="text", label="label", faulty=faulty)) == 4
    assert [row.label for row in faulty] == ["anna"]


def test_a_folder_that_may_not_be_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom permissions do not stop."""
    folder, real = write_digits(tmp_path / "people", range(2), range(2)), os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("d1"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"people/d1: cannot be read \(Permission denied\)\. Repair its permissions"):
        read(folder)


def test_faulty_files_are_handed_over_with_their_reason(tmp_path: Path) -> None:
    faulty: list[Row] = []
    rows = read(faulty_folder(tmp_path), faulty=faulty)
    assert len(rows) == 4
    told = {Path(row.file).name: row.fault for row in faulty}
    assert told.keys() == FAULTS.keys()
    assert all(why in told[name] for name, why in FAULTS.items())


def test_pictures_without_identity_are_fine_where_none_is_needed(tmp_path: Path) -> None:
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "a.png").write_bytes(packed(digit(0, 6)))
    (row,) = read(tmp_path / "strangers", require_label=False)
    assert row.label is None


def test_missing_files_of_a_table_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("path,label\nnone.png,a\n")
    with pytest.raises(DataError, match=r"none\.png: cannot be read \(No such file") as caught:
        read(tmp_path / "rows.csv")
    assert str(caught.value).count("none.png") == 1


@pytest.mark.parametrize("folder", ["{outside}/d0", "../outside/d0", "d0/../../outside/d0", "way-out/d0"])
def test_a_table_leads_to_nothing_outside_of_the_folder_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """What lies there is refused in the same words whether it is there or not."""
    inside, outside = (write_digits(tmp_path / name, range(1), range(2)) for name in ("inside", "outside"))
    (inside / "way-out").symlink_to(outside)
    monkeypatch.setenv(BELOW, str(inside))
    (inside / "rows.csv").write_text("path,label\nd0/000.png,a\nd0/../d0/001.png,b\n")
    assert [row.label for row in read(inside / "rows.csv")] == ["a", "b"]
    said = []
    for name in ("000.png", "none.png"):
        (inside / "rows.csv").write_text(f"path,label\n{folder.format(outside=outside)}/{name},a\n")
        with pytest.raises(DataError, match="leads out of") as caught:
            read(inside / "rows.csv")
        said.append(str(caught.value).replace(name, "NAME"))
    assert said[0] == said[1]


def test_a_link_in_a_folder_leads_to_nothing_outside_of_the_folder_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = (write_digits(tmp_path / name, range(1), range(2)) for name in ("inside", "outside"))
    (inside / "d0" / "link.png").symlink_to(outside / "d0" / "000.png")
    assert len(read(inside)) == 3
    monkeypatch.setenv(BELOW, str(inside))
    with pytest.raises(DataError, match=r"^1 file cannot be used.*link\.png: leads out of"):
        read(inside)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "people", range(1), range(2))
    os.mkfifo(folder / "d0" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: is a folder, a pipe or a device"):
        read(folder)
    for name in ("/dev/zero", "people/d0"):
        (tmp_path / "rows.csv").write_text(f"path,label\n{name},a\n")
        with pytest.raises(DataError, match="is a folder, a pipe or a device"):
            read(tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").write_text('{"path": "a\\u0000b.png", "label": "a"}\n')
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "rows.jsonl")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none.csv", tmp_path / "none.zip"):
        with pytest.raises(DataError):
            read(path)


def test_a_link_to_a_folder_is_said_not_followed(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "people", range(1), range(2))
    (folder / "elsewhere").symlink_to("/etc")
    with pytest.raises(DataError, match="a link to a folder"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../escape.png", "leads out"),
        ("a/../../escape.png", "leads out"),
        ("/etc/absolute.png", "leads out"),
        ("C:/windows.png", "leads out"),
        ("..\\dos.png", "leads out"),
    ],
)
def test_a_zip_that_leads_out_is_refused(tmp_path: Path, name: str, why: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("d0/fine.png", packed(digit(0, 0)))
        archive.writestr(name, packed(digit(0, 1)))
    with pytest.raises(DataError, match=why):
        read(tmp_path / "evil.zip")


def test_links_bombs_and_doubles_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("d0/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for what, why in (
        ("link", "a link"),
        ("bomb", "500 times"),
        ("huge", "over the limit"),
        ("twice", "a second file"),
    ):
        path = tmp_path / f"{what}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            if what == "link":
                archive.writestr(link, "/etc/passwd")
            elif what == "twice":
                archive.writestr("d0/a.png", packed(digit(0, 0)))
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr("d0/a.png", packed(digit(0, 1)))
            else:
                archive.writestr("d0/a.png", bytes(5_000_000 if what == "bomb" else 20_000_001))
        with pytest.raises(DataError, match=why):
            read(path)


def test_a_member_that_lies_about_its_size_is_one_faulty_file(tmp_path: Path) -> None:
    path = zipped(write_digits(tmp_path / "people", range(1), range(2)), tmp_path / "people.zip")
    content = bytearray(path.read_bytes())
    at = content.find(b"IDAT")
    content[at : at + 40] = bytes(40)  # the checksum of the member no longer fits
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"people\.zip!d0/000\.png: cannot be unpacked") as caught:
        read(path)
    assert str(caught.value).count("people.zip") == 1
