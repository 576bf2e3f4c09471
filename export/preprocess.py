"""From an image file to the array that the network takes. The only way an image enters validation, test, parity and
the bundle, which holds a copy of this file, byte for byte. Standard library, numpy and Pillow only."""

import contextlib
import os
import threading
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

FITS = ("squash", "pad", "crop")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
DECODERS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Pillow knows many more, EPS among them, which starts Ghostscript: nothing for a stranger's file."""
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_GREY = (114, 114, 114)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""
_WHITE_IS_ZERO = 0
_HUGE = 2**25
_one_at_a_time = threading.Lock()
"""Held while an image of more than _HUGE pixels is decoded, which may take two gigabytes."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # twice as many pixels are an ImageError


class ImageError(ValueError):
    """A file that is no readable image."""


@dataclass(frozen=True)
class Preprocess:
    """EXIF transpose, RGB, resize to size x size. More than 8 bits a pixel are scaled by the range of the format.

    fit: squash ignores the aspect ratio; pad keeps it inside a grey square; crop keeps it and cuts the middle.
    A JPEG more than twice as large as needed is decoded at a fraction of its size (Pillow's draft mode).
    """

    size: int
    fit: str = "squash"
    filter: str = "bilinear"
    format: int = 1

    def __post_init__(self) -> None:
        if self.fit not in FITS or self.filter not in _FILTERS or self.format != 1:
            raise ValueError(f"unknown preprocessing {asdict(self)}; fit: {FITS}, filter: {tuple(_FILTERS)}, format: 1")

    def load(self, path: str | Path) -> np.ndarray:
        """uint8 array (size, size, 3), RGB. Raises ImageError naming the file and what is wrong with it."""
        try:
            with Image.open(path, formats=DECODERS) as image:
                self._draft(image)
                huge = image.width * image.height > _HUGE
                with _one_at_a_time if huge else contextlib.nullcontext():
                    return self.resize(_upright(image))
        except Image.DecompressionBombError as error:
            raise ImageError(f"{path}: too many pixels to decode safely: {error}") from error
        except MemoryError as error:
            raise ImageError(f"{path}: not enough memory to decode it") from error
        except Exception as error:  # damaged files make Pillow's decoders raise whatever they like, struct.error too
            raise ImageError(f"{path}: {str(error) or type(error).__name__}; replace it, or leave it out") from error

    def decode(self, source: str | Path | BinaryIO, scaled: bool = True) -> Image.Image:
        """RGB, upright. scaled: let a large JPEG be decoded at a fraction of its size. Raises what Pillow raises."""
        with Image.open(source, formats=DECODERS) as image:
            if scaled:
                self._draft(image)
            return _upright(image)

    def resize(self, image: Image.Image) -> np.ndarray:
        """uint8 array (size, size, 3) of a decoded image."""
        return np.asarray(self._resize(image))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _draft(self, image: Image.Image) -> None:
        image.draft("RGB", (2 * self.size, 2 * self.size))

    def _resize(self, image: Image.Image) -> Image.Image:
        target, resample = (self.size, self.size), _FILTERS[self.filter]
        if self.fit == "pad":
            return ImageOps.pad(image, target, method=resample, color=_GREY)
        if self.fit == "crop":
            return ImageOps.fit(image, target, method=resample)
        return image.resize(target, resample)


def _upright(image: Image.Image) -> Image.Image:
    white = _white(image)
    return _to_rgb(ImageOps.exif_transpose(image), white)


def _to_rgb(image: Image.Image, white: int) -> Image.Image:
    """white: see _white."""
    if image.mode.startswith("I"):  # more than 8 bits a pixel; convert() would clip at 255
        values = np.asarray(image).astype(np.float32)  # changed in place: it may be hundreds of megabytes
        values *= 255.0 / white
        values += 0 if white > 0 else 255
        np.clip(np.rint(values, out=values), 0, 255, out=values)
        image = Image.fromarray(values.astype(np.uint8))
        del values
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _white(image: Image.Image) -> int:
    """The number that stands for white in a grey pixel of more than 8 bits; its negative where 0 is white and this is
    black. Raises ValueError for pixels of which nothing says what is white."""
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, of which nothing says what is white; save 8 or 16 bits"
        )
    if not image.mode.startswith("I") or image.format != "TIFF":
        return 2**16 - 1
    tags = image.tag_v2  # type: ignore[attr-defined]  # of a TIFF
    (bits, *_), (kind, *_) = tags.get(_BITS_PER_SAMPLE, (16,)), tags.get(_SAMPLE_FORMAT, (1,))
    if kind != 1 or not 8 < bits <= 16:
        kinds = {1: "unsigned", 2: "signed", 3: "floating-point"}
        raise ValueError(f"its pixels are {bits}-bit {kinds.get(kind, 'unknown')} numbers; save 8 or 16 bits, unsigned")
    white = 2 ** int(bits) - 1
    return -white if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else white


def has_several_frames(path: str | Path) -> bool:
    """Return whether an image is animated or has several pages. Raises whatever Pillow raises."""
    with Image.open(path, formats=DECODERS) as image:
        return bool(getattr(image, "is_animated", False))


def find_images(path: str | Path) -> list[Path]:
    """A file itself, or all image files under a folder, sorted by path. Raises ImageError for a folder that cannot be
    read."""
    path = Path(path)
    if path.is_file():
        return [path]

    def unreadable(error: OSError) -> None:
        raise ImageError(f"{error.filename}: this folder cannot be read: {error.strerror}") from error

    found = (Path(folder, name) for folder, _, names in os.walk(path, onerror=unreadable) for name in names)
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())
