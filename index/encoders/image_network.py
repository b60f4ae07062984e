"""The image encoder's network: a sentence-transformers input module, from pictures to vectors.

The default backbone is of the IR / MobileFaceNet family: residual blocks with PReLU ("improved residual" units of Deng
et al., "ArcFace", 2019) and a global depthwise convolution at the end (Chen et al., "MobileFaceNets", 2018), which
keeps where things are, as average pooling would not. `timm:NAME` takes any backbone of timm instead.

Vectors are not normalised here: the objectives and the encoder do that, and a plain softmax needs their lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from index.data.images import decode, read_image
from index.errors import EncoderError

GREY = 127
"""What fills a picture up to a square: the middle of the range."""
SMALLEST, LARGEST = 16, 512


class ImageNetwork(InputModule):
    """Pictures to vectors: `pixel_values` (B, channels, size, size) uint8 or float in [0, 255] -> (B, dimension).

    Args:
        backbone: `ir`, or `timm:NAME`.
        size: edge in pixels of the square that pictures are fitted into.
        channels: 1 grey, 3 colour.
        width: channels of the first stage of `ir`; the others have twice and four times as many.
        dimension: of the vectors. None: without the last linear layer of `ir`, four times `width`.

    Raises:
        EncoderError: a backbone that does not exist or is not installed, a figure out of its range.
    """

    config_keys = ["backbone", "size", "channels", "width", "dimension"]  # noqa: RUF012  the library's own protocol
    save_in_root = True

    def __init__(
        self, backbone: str = "ir", size: int = 64, channels: int = 1, width: int = 32, dimension: int | None = 128
    ) -> None:
        super().__init__()
        if not SMALLEST <= size <= LARGEST or channels not in (1, 3) or not 4 <= width <= 256:
            raise EncoderError(
                f"No image encoder with size {size}, {channels} channels and width {width}: expected a size of "
                f"{SMALLEST} to {LARGEST} pixels, 1 or 3 channels and a width of 4 to 256."
            )
        if dimension is not None and not 2 <= dimension <= 4096:
            raise EncoderError(f"No image encoder of dimension {dimension}: expected 2 to 4096.")
        self.backbone, self.size, self.channels, self.width, self.dimension = backbone, size, channels, width, dimension
        self.network: nn.Module = _backbone(backbone, size, channels, width, dimension)

    @property
    def modalities(self) -> list[Any]:
        return ["image"]

    def get_embedding_dimension(self) -> int:
        return self.dimension or 4 * self.width

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Pictures as PIL images, arrays, bytes of a file or paths -> `pixel_values`. Raises `DataError`."""
        arrays = [np.array(self.square(picture)) for picture in inputs]
        pixels = torch.from_numpy(np.stack(arrays)).reshape(len(arrays), self.size, self.size, self.channels)
        return {"pixel_values": pixels.permute(0, 3, 1, 2)}

    def square(self, picture: Any) -> Image.Image:
        """One picture as the network sees it: grey or colour, fitted whole into the square. Raises `DataError`."""
        image = _opened(picture).convert("L" if self.channels == 1 else "RGB")
        if image.size == (self.size, self.size):
            return image
        fill = GREY if self.channels == 1 else (GREY, GREY, GREY)
        return ImageOps.pad(image, (self.size, self.size), method=Image.Resampling.BILINEAR, color=fill)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        features["sentence_embedding"] = self.network(standardised(features["pixel_values"]))
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Configuration and weights, always as safetensors."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> ImageNetwork:
        hub = {
            name: kwargs[name]
            for name in ("subfolder", "token", "cache_folder", "revision", "local_files_only")
            if name in kwargs
        }
        network = cls(**cls.load_config(model_name_or_path, **hub))
        loaded: ImageNetwork = cls.load_torch_weights(model_name_or_path, model=network, **hub)
        return loaded


def standardised(pixels: Tensor) -> Tensor:
    """Each picture with mean 0 and standard deviation 1 over all its values: light and contrast are no identity."""
    pixels = pixels.float()
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    deviation = pixels.std(dim=(1, 2, 3), keepdim=True, correction=0)
    return (pixels - mean) / (deviation + 1.0)  # + 1 grey level: a blank picture stays 0


def _opened(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    return decode(picture) if isinstance(picture, bytes) else read_image(Path(picture))


def _backbone(name: str, size: int, channels: int, width: int, dimension: int | None) -> nn.Module:
    if name == "ir":
        return _ir(size, channels, width, dimension)
    if name.startswith("timm:"):
        if dimension is None:
            raise EncoderError(f"The backbone {name} has no vectors of its own. Give a dimension of 2 to 4096.")
        return _timm(name.removeprefix("timm:"), channels, dimension)
    raise EncoderError(f"No image backbone {name!r}. Use 'ir', or 'timm:NAME' with a name of timm.list_models().")


class _Block(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3, BN, and the input beside it; `stride` at the second convolution."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.PReLU(outside),
            nn.Conv2d(outside, outside, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )
        same = inside == outside and stride == 1
        self.beside: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.path(x) + self.beside(x)
        return out


def _ir(size: int, channels: int, width: int, dimension: int | None) -> nn.Module:
    """Stem and three stages of two blocks, each halving the edge; the stem halves pictures over 40 pixels too."""
    stem = 2 if size > 40 else 1
    edge = size
    for stride in (stem, 2, 2, 2):
        edge = -(-edge // stride)
    widest = 4 * width
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stem, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.PReLU(width),
        _Block(width, width, 2),
        _Block(width, width, 1),
        _Block(width, 2 * width, 2),
        _Block(2 * width, 2 * width, 1),
        _Block(2 * width, widest, 2),
        _Block(widest, widest, 1),
        nn.Conv2d(widest, widest, edge, groups=widest, bias=False),
        nn.BatchNorm2d(widest),
        nn.Flatten(),
        # made in this order, for earlier versions began with the same random weights
        *([] if dimension is None else [nn.Linear(widest, dimension, bias=False), nn.BatchNorm1d(dimension)]),
    )


def _timm(name: str, channels: int, dimension: int) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise EncoderError(
            f"The backbone timm:{name} needs the package timm, which cannot be used here ({error}). Install it, with a "
            "torchvision built for the installed torch: pip install 'surematch[timm]'"
        ) from error
    try:
        return nn.Sequential(
            timm.create_model(name, pretrained=False, in_chans=channels, num_classes=dimension),
            nn.BatchNorm1d(dimension),
        )
    except Exception as error:  # timm raises many unrelated types for names and sizes it does not have
        raise EncoderError(f"timm has no usable backbone {name!r} ({error}). See timm.list_models().") from error
