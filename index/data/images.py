"""Pictures from untrusted bytes: limits first, then decoding, and one upright RGB or grey image at the end.

Nothing is decoded before its header says that it is one of the formats allowed, one frame, and small enough, and a JPEG
not before its scans are counted; so a decompression bomb costs its compressed bytes and no more. Every fault is a
`DataError`.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from index.data.confined import open_confined
from index.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What may be decoded; PPM stands for the netpbm family (PGM, PBM) too."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
"""Names a picture file may end with."""
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest picture that is decoded. A pixel costs about 8 bytes of memory on the way."""

    bytes: int = 20_000_000
    pixels: int = 40_000_000
    edge: int = 20_000
    scans: int = 100
    """Of a JPEG: each goes over all of its pixels again. Progressive ones have about ten; libtiff, too, takes 100."""


LIMITS = Limits()
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_BARE = frozenset(b"\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8")
"""Markers of a JPEG without a length behind them: restarts stand within a scan."""
_SCAN, _END = 0xDA, 0xD9


def decode(content: bytes, limits: Limits = LIMITS) -> Image.Image:
    """The picture in `content`, upright (EXIF orientation applied), mode "L" or "RGB"; transparency over white.

    Raises `DataError` for anything that is not one whole picture of an allowed format within `limits`.
    """
    if not content:
        raise DataError("The picture is empty: it has 0 bytes. Give the bytes of a picture file.")
    if len(content) > limits.bytes:
        raise DataError(
            f"The picture has {len(content):,} bytes, more than the {limits.bytes:,} allowed. Make it smaller."
        )
    # Pillow says what it dislikes in many types: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata; a picture that decodes is a picture
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                _check_header(image, limits)
                if image.format in ("JPEG", "MPO"):
                    _check_scans(content, limits)
                image.load()
                return _flat(_upright(image))
    except DataError:
        raise
    except MemoryError as error:
        raise DataError("The picture needs more memory to decode than there is. Make it smaller.") from error
    except Exception as error:
        raise DataError(
            f"The picture cannot be decoded ({_brief(error)}). Expected one whole picture: PNG, JPEG, WebP, BMP, GIF, "
            "TIFF or PGM."
        ) from error


def blank() -> bytes:
    """A picture file with nothing on it, to try an encoder with."""
    file = BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    return file.getvalue()


def read_image(path: Path, limits: Limits = LIMITS) -> Image.Image:
    """The picture in the file `path`, see `decode`. Raises `DataError` naming the file."""
    try:
        return decode(read_bytes(path, limits), limits)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_bytes(path: Path, limits: Limits = LIMITS) -> bytes:
    """The bytes of a picture file; at most one more than allowed, so that `decode` refuses it.

    Raises `DataError`, without the file's name.
    """
    try:
        with open_confined(path) as file:
            return file.read(limits.bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot be read ({why}). Check the path and its permissions.") from error


def _check_header(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels or max(width, height) > limits.edge:
        raise DataError(
            f"The picture has {width} x {height} pixels; at most {limits.pixels:,} in all and {limits.edge:,} an edge "
            "are allowed. Make it smaller."
        )
    if image.mode == "F":
        raise DataError("The picture holds floating-point numbers of no known range. Save it with 8 bits a value.")
    if image.mode == "I" and image.format == "TIFF":  # of others, "I" is Pillow's word for sixteen bits
        raise DataError("The picture holds 32 bits a value, of no known range. Save it with 8 or 16 bits a value.")
    if isinstance(image, TiffImageFile) and image.mode in _DEEP_MODES:
        tags = image.tag_v2  # Pillow takes every such picture for one of all sixteen bits with black as 0
        if tags.get(BITSPERSAMPLE) != (16,) or tags.get(PHOTOMETRIC_INTERPRETATION) != 1:
            raise DataError(
                "The picture holds 12 bits a value, or 16 with white as 0. Save it with black as 0 and 8 or 16 bits."
            )
    # MPO: a JPEG as some phones write it, with a preview or a depth map behind the picture that is meant
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise DataError(
            f"The picture has {frames} frames or pages; which of them is meant is not said. Give a file of one picture."
        )


def _check_scans(content: bytes, limits: Limits) -> None:
    """Of the first JPEG in `content`, marker by marker as ISO/IEC 10918-1 (annex B) has them."""
    scans, at = 0, 0
    while (marker := _MARKER.search(content, at)) is not None:
        kind, at = marker[1][0], marker.end()
        if kind == _END:
            return
        if kind in _BARE:
            continue
        at += int.from_bytes(content[at : at + 2], "big")
        scans += kind == _SCAN
        if scans > limits.scans:
            raise DataError(f"The picture has more than {limits.scans} scans, which no camera writes. Save it anew.")


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its camera meant it. `ImageOps.exif_transpose` would write all metadata anew, and fail at an odd
    field that has nothing to do with the picture.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata, of which Pillow complains in many types
        turn = None
    return image if turn is None else image.transpose(turn)


def _flat(image: Image.Image) -> Image.Image:
    """Grey as "L", everything else as "RGB", without transparency."""
    if image.mode in _DEEP_MODES:
        image = _of_eight_bits(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        mode = "L" if image.mode in _GREY_MODES else "RGB"
        seen = image.convert("RGBA")
        image = Image.new(mode, seen.size, "white")
        image.paste(seen.convert(mode), mask=seen.getchannel("A"))
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """A picture of sixteen bits a value as "L": `convert` would cut every value over 255 to white."""
    values = np.asarray(image)
    shallow = (values >> 8).astype(np.uint8)
    if "transparency" in image.info:
        shallow[values == image.info["transparency"]] = 255
    return Image.fromarray(shallow)


def _brief(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # it says where in memory the bytes are
        return "it does not begin like one"
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


ImageFile.LOAD_TRUNCATED_IMAGES = False
"""Half a picture is no picture; another library in the process may have said otherwise."""
