"""Pictures the tests share: handwritten digits (scikit-learn's scans) as files of every format, and faults in them."""

from __future__ import annotations

import functools
import random
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


@functools.cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images * 15.9).astype(np.uint8), found.target


def digit(label: int, which: int, edge: int = 32) -> Image.Image:
    """The `which`-th scan of the digit `label`, enlarged, mode "L"."""
    scans, labels = _digits()
    return Image.fromarray(scans[np.flatnonzero(labels == label)[which]]).resize((edge, edge))


def packed(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """`image` as the bytes of a file."""
    to = BytesIO()
    image.save(to, form, **options)
    return to.getvalue()


def write_digits(folder: Path, labels: range, scans: range, edge: int = 32) -> Path:
    """One folder a digit, as people bring their pictures."""
    for label in labels:
        (folder / f"d{label}").mkdir(parents=True)
        for which in scans:
            (folder / f"d{label}" / f"{which:03d}.png").write_bytes(packed(digit(label, which, edge)))
    return folder


def mutations(count: int, seed: int = 0) -> list[bytes]:
    """`count` damaged pictures: real ones of every format, cut, overwritten, spliced, and with numbers made extreme."""
    draw = random.Random(seed)
    sound = [
        packed(digit(at % 10, at, 24).convert("RGB" if at % 2 else "L"), form) for at, form in enumerate(FILE_FORMATS)
    ]
    sound.append(packed(digit(3, 1).convert("RGBA"), "PNG"))
    sound.append(packed(digit(4, 1).convert("P"), "PNG", transparency=0))
    sound.append(packed(digit(5, 1), "MPO", save_all=True, append_images=[digit(5, 2)]))
    made = []
    for at in range(count):
        content = bytearray(sound[at % len(sound)])
        match draw.randrange(6):
            case 0:
                del content[draw.randrange(len(content)) :]
            case 1:
                for _ in range(draw.randint(1, 12)):
                    content[draw.randrange(len(content))] = draw.randrange(256)
            case 2:  # the header holds the sizes, the depths and the lengths
                for _ in range(draw.randint(1, 4)):
                    content[draw.randrange(min(60, len(content)))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3:
                where = draw.randrange(len(content))
                content[where : where + 4] = draw.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"))
            case 4:
                other = draw.choice(sound)
                where = draw.randrange(len(content))
                content[where:] = other[draw.randrange(len(other)) :]
            case _:
                where = draw.randrange(len(content))
                content[where:where] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 40)))
        made.append(bytes(content))
    return made
