"""Decoding: what a picture may be, and that everything else is one clear error."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.data.images import Limits, decode, read_image
from index.errors import DataError
from tests.pictures import FILE_FORMATS, digit, mutations, packed


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_every_format_decodes_to_what_was_saved(form: str) -> None:
    picture = digit(3, 0)
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    seen = decode(packed(picture, form, **options))
    assert seen.size == picture.size
    assert seen.mode in ("L", "RGB")
    difference = np.abs(np.asarray(seen.convert("L"), int) - np.asarray(picture, int))
    assert difference.max() <= (3 if form == "JPEG" else 1)


def _colours() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))


def test_grey_stays_grey_and_colour_stays_colour() -> None:
    assert decode(packed(digit(1, 0))).mode == "L"
    assert decode(packed(digit(1, 0).convert("1"))).mode == "L"
    assert np.array_equal(np.asarray(decode(packed(_colours()))), np.asarray(_colours()))
    assert decode(packed(_colours().convert("CMYK"), "JPEG")).mode == "RGB"
    assert decode(packed(_colours().quantize(8))).mode == "RGB"


@pytest.mark.parametrize(("mode", "shown"), [("LA", "L"), ("RGBA", "RGB")])
def test_what_is_transparent_is_white(mode: str, shown: str) -> None:
    picture = Image.new(mode, (2, 1), 0)
    picture.putpixel((1, 0), (0,) * (len(mode) - 1) + (255,))
    seen = decode(packed(picture))
    assert seen.mode == shown
    assert np.asarray(seen).reshape(2, -1)[:, 0].tolist() == [255, 0]


def test_sixteen_bits_keep_their_order_and_are_not_cut_to_white() -> None:
    deep = Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16))
    assert np.asarray(decode(packed(deep))).tolist() == [[0, 1, 128, 255]]
    assert np.asarray(decode(packed(deep, transparency=256))).tolist() == [[0, 255, 128, 255]], "clear means white"


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_of_either_end_first(orientation: int) -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000
    shown = values if orientation == 1 else np.rot90(values, -1)
    for order in ("<", ">"):
        assert decode(deep_tiff(values, order, orientation)).size == shown.shape[::-1]
        assert np.asarray(decode(deep_tiff(values, order, orientation))).tolist() == (shown >> 8).tolist()


def test_thirty_two_bits_have_no_known_range() -> None:
    buffer = BytesIO()
    Image.fromarray(np.arange(6, dtype=np.int32).reshape(2, 3)).save(buffer, "TIFF")
    with pytest.raises(DataError, match="32 bits a value"):
        decode(buffer.getvalue())


def test_deep_pictures_that_would_be_negatives_or_nearly_black_are_refused() -> None:
    values = np.zeros((4, 4), np.uint16)
    for odd in ({"white_is_zero": True}, {"bits": 12}):
        with pytest.raises(DataError, match="12 bits a value, or 16 with white as 0"):
            decode(deep_tiff(values, "<", 1, **odd))


def deep_tiff(
    values: np.ndarray, order: str, orientation: int, *, bits: int = 16, white_is_zero: bool = False
) -> bytes:
    """A TIFF of 16 bits a value, as one strip: Pillow writes only one of the two byte orders."""
    content = values.astype(f"{order}u2").tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8)]
    tags += [(274, orientation), (277, 1), (278, height), (279, len(content))]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    entries = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content)) + content + entries


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright_as_their_camera_meant(orientation: int) -> None:
    upright = Image.new("L", (8, 4))
    upright.putpixel((0, 0), 255)
    # how the sensor stores a picture that EXIF then turns upright
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = np.asarray(decode(packed(stored, exif=exif)))
    assert seen.shape == (4, 8)
    assert seen[0, 0] == 255
    assert seen.sum() == 255


def test_an_odd_field_beside_the_orientation_does_not_matter() -> None:
    """A resolution as text and one below zero: no picture viewer minds, and `ImageOps.exif_transpose` fails."""
    for kind, value in ((2, b"72\0\0"), (9, struct.pack("<i", -1))):
        fields = [struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), struct.pack("<HHI", 0x11A, kind, len(value)) + value]
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(fields) + bytes(4)
        assert decode(packed(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)


def test_numbers_without_a_range_are_refused() -> None:
    with pytest.raises(DataError, match="floating-point"):
        decode(packed(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_several_frames_are_refused() -> None:
    frames = [digit(at, 0) for at in range(3)]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        with pytest.raises(DataError, match="3 frames"):
            decode(packed(frames[0], form, save_all=True, append_images=frames[1:]))


def test_the_first_picture_of_a_phones_jpeg_is_taken() -> None:
    """Format MPO. What stands behind it is not looked at, and limits are those of any picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    behind = Image.new("RGB", (16, 16), "blue")
    content = packed(Image.new("RGB", (64, 32), "red"), "MPO", save_all=True, append_images=[behind], exif=exif)
    assert content.count(b"\xff\xd8\xff") == 2
    for given in (content, content[:-20]):
        seen = decode(given)
        assert seen.size == (32, 64)
        red, green, blue = seen.getpixel((5, 5))
        assert red > 240
        assert max(green, blue) < 15
    with pytest.raises(DataError, match="64 x 32 pixels"):
        decode(content, Limits(pixels=64 * 32 - 1))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 bytes"),
        (b"GIF89a", "cannot be decoded"),
        (b"%PDF-1.7 hello", "cannot be decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be decoded"),
        (packed(digit(1, 0))[:-30], "cannot be decoded"),
        (packed(digit(1, 0), "JPEG")[:300], "cannot be decoded"),
    ],
)
def test_what_is_no_whole_picture_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why):
        decode(content)


@pytest.mark.parametrize("content", [b"GIF89a", b"%PDF-1.7 hello", b"\0" * 100])
def test_what_is_no_picture_is_said_without_a_place_in_memory(content: bytes) -> None:
    with pytest.raises(DataError, match=r"cannot be decoded \(it does not begin like one\)\. Expected one"):
        decode(content)


def test_formats_that_start_other_programs_are_not_tried() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(postscript)


def _bomb(width: int, height: int) -> bytes:
    """A PNG of `width` x `height` white pixels: a few kilobytes for gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(10_000_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", loaded)
    with pytest.raises(DataError, match="10000 x 10000 pixels; at most 40,000,000"):
        decode(_bomb(10_000, 10_000))
    with pytest.raises(DataError, match="10000000000 pixels"):
        decode(_bomb(100_000, 100_000))
    with pytest.raises(DataError, match="20,000 an edge"):
        decode(_bomb(20_001, 1))


def _scans(extra: int, behind: bytes = b"") -> bytes:
    """A progressive JPEG that says one of its scans so often again; `behind` stands after its end."""
    file = BytesIO()
    Image.linear_gradient("L").save(file, "JPEG", progressive=True, quality=50)
    content = file.getvalue()
    starts = [at for at in range(len(content)) if content.startswith(b"\xff\xda", at)]
    last = content[starts[-1] : -2]  # of the highest bits' refinements: the same again changes nothing that is checked
    return content[:-2] + last * extra + content[-2:] + behind


def test_scans_are_counted_before_one_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    own = _scans(0).count(b"\xff\xda")
    assert 2 < own < 20
    assert decode(_scans(0)).size == (256, 256)
    assert decode(_scans(0, behind=b"\xff\xda" * 1000)).size == (256, 256)  # the film behind a telephone's photograph
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 500  # nor those of what is written about the picture
    file = BytesIO()
    Image.open(BytesIO(_scans(0))).save(file, "JPEG", exif=exif, comment=b"\xff\xda" * 500)
    assert file.getvalue().count(b"\xff\xda") > 500
    assert decode(file.getvalue()).size == (256, 256)
    assert decode(_scans(3), Limits(scans=own + 3)).size == (256, 256)

    def loaded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", loaded)
    with pytest.raises(DataError, match=f"more than {own + 2} scans"):
        decode(_scans(3), Limits(scans=own + 2))
    with pytest.raises(DataError, match="more than 100 scans, which no camera writes"):
        decode(_scans(20_000))


def test_limits_are_exact() -> None:
    content = packed(digit(1, 0, 32))
    assert decode(content, Limits(bytes=len(content), pixels=1024, edge=32)).size == (32, 32)
    for limits in (Limits(bytes=len(content) - 1), Limits(pixels=1023), Limits(edge=31)):
        with pytest.raises(DataError, match="allowed"):
            decode(content, limits)


def test_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.png: The picture cannot be decoded"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.png: cannot be read \(No such file"):
        read_image(tmp_path / "b.png")


def test_damaged_pictures_are_pictures_or_data_errors() -> None:
    """Whatever decodes is upright, small and of a mode encoders know; nothing else than a `DataError` escapes."""
    decoded, said = 0, set[str]()
    for content in mutations(600):
        try:
            seen = decode(content, Limits(pixels=1_000_000))
        except DataError as error:
            said.add(str(error))
            continue
        decoded += 1
        assert seen.mode in ("L", "RGB")
        assert seen.width * seen.height <= 1_000_000
        BytesIO().write(seen.tobytes())
    assert not [message for message in said if " object at 0x" in message]
    assert decoded > 30, "hardly anything decodes: the mutations test only the first check"
