"""Random changes that leave the identity of a picture alone: for faces and photographs, and for characters.

Batches of pictures, (B, C, H, W) float32 in [0, 255], on whatever device they are; all randomness comes from the
generator passed in. Every picture of a batch gets its own draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Changes:
    """How far pictures are changed at most; a field of 0 is off.

    Attributes:
        flip: share of pictures mirrored left to right.
        rotation: degrees either way.
        shear: degrees either way.
        zoom: relative scale either way, 0.1: 0.9 to 1.1 (this is the crop).
        shift: of the edge, either way.
        light: relative contrast, and brightness in standard deviations, either way.
        colour: relative strength of each channel either way.
        blur: share of pictures blurred.
        cutout: share of pictures that lose a rectangle (DeVries & Taylor, "Cutout", 2017).
    """

    flip: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    light: float = 0.0
    colour: float = 0.0
    blur: float = 0.0
    cutout: float = 0.0


AUGMENTATIONS: dict[str, Changes] = {
    "none": Changes(),
    "faces": Changes(
        flip=0.5, rotation=10, shear=5, zoom=0.12, shift=0.08, light=0.3, colour=0.1, blur=0.2, cutout=0.5
    ),
    "characters": Changes(rotation=12, shear=12, zoom=0.15, shift=0.1, cutout=0.2),
}


def augment(pictures: Tensor, changes: Changes, generator: torch.Generator) -> Tensor:
    """`pictures` (B, C, H, W) float32 changed at random; the result has the same shape and is not clipped."""
    count, device = len(pictures), pictures.device

    def spread(extent: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1).to(device) * extent

    def chosen(share: float) -> Tensor:
        return (torch.rand(count, generator=generator) < share).to(device)

    if any((changes.flip, changes.rotation, changes.shear, changes.zoom, changes.shift)):
        pictures = _moved(pictures, changes, spread, chosen)
    if changes.light:
        mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
        gain, lift = (1 + spread(changes.light)).view(-1, 1, 1, 1), spread(changes.light).view(-1, 1, 1, 1)
        slope = spread(changes.light).view(-1, 1, 1, 1) * torch.linspace(-1, 1, pictures.shape[3], device=device)
        spreadness = pictures.std(dim=(1, 2, 3), keepdim=True, correction=0)
        pictures = mean + (pictures - mean) * gain + (lift + slope) * spreadness
    if changes.colour and pictures.shape[1] > 1:
        gains = 1 + changes.colour * (2 * torch.rand(count, pictures.shape[1], 1, 1, generator=generator) - 1)
        pictures = pictures * gains.to(device)
    if changes.blur:
        soft = functional.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
        pictures = torch.where(chosen(changes.blur).view(-1, 1, 1, 1), soft, pictures)
    if changes.cutout:
        pictures = _cut(pictures, chosen(changes.cutout), generator)
    return pictures


def _moved(
    pictures: Tensor, changes: Changes, spread: Callable[[float], Tensor], chosen: Callable[[float], Tensor]
) -> Tensor:
    """One affine map a picture, sampled bilinearly; what comes from outside repeats the border."""
    turn, lean = spread(math.radians(changes.rotation)), torch.tan(spread(math.radians(changes.shear)))
    wide, high = 1 + spread(changes.zoom), 1 + spread(changes.zoom)
    mirror = torch.where(chosen(changes.flip), -1.0, 1.0)
    cos, sin = torch.cos(turn), torch.sin(turn)
    first = torch.stack([cos * wide * mirror, -sin * high + lean, 2 * spread(changes.shift)], dim=1)
    second = torch.stack([sin * wide * mirror, cos * high, 2 * spread(changes.shift)], dim=1)
    maps = torch.stack([first, second], dim=1)
    grid = functional.affine_grid(maps, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _cut(pictures: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of a fifth to two fifths of the edge, anywhere, becomes the picture's mean."""
    count, _, height, width = pictures.shape
    size = 0.2 + 0.2 * torch.rand(count, 2, generator=generator).to(pictures.device)
    middle = torch.rand(count, 2, generator=generator).to(pictures.device)
    rows = torch.linspace(0, 1, height, device=pictures.device)
    columns = torch.linspace(0, 1, width, device=pictures.device)
    tall = (rows[None] - middle[:, :1]).abs() < size[:, :1] / 2
    broad = (columns[None] - middle[:, 1:]).abs() < size[:, 1:] / 2
    hole = tall[:, :, None] & broad[:, None, :] & chosen[:, None, None]
    return torch.where(hole[:, None], pictures.mean(dim=(1, 2, 3), keepdim=True), pictures)
