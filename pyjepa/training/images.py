"""Images to learn from: scikit-learn's digits, or a folder of files. Everything is read once and kept as bytes."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyjepa.errors import PyjepaError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The files of a folder that are taken for images; others are ignored."""
MOST_PIXELS = 50_000_000
"""Of one file, judged by its header before anything is decoded."""
MOST_BYTES = 4 << 30
"""Of all images of a folder once they have one size."""
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")

Channels = Literal[1, 3]


class ImageError(PyjepaError, ValueError):
    """A folder or a file in it is not what training needs; the message names the file."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in memory."""

    path: Path
    """Where they come from; "digits" for scikit-learn's."""
    pixels: NDArray[np.uint8]
    """(N, C, H, W)."""
    labels: NDArray[np.int64] | None
    """(N,), or None where the images have no classes."""
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def fingerprint(self) -> str:
        """Eight hex digits that stand for pixels and labels."""
        value = zlib.crc32(self.pixels.tobytes(), zlib.crc32(repr(self.pixels.shape).encode()))
        return f"{value if self.labels is None else zlib.crc32(self.labels.tobytes(), value):08x}"

    def subset(self, rows: NDArray[np.int64]) -> ImageSet:
        """Some of the images."""
        labels = None if self.labels is None else self.labels[rows]
        return ImageSet(self.path, self.pixels[rows], labels, self.classes)


def digits() -> ImageSet:
    """The 1797 handwritten digits that come with scikit-learn: 8x8, one channel, ten classes (nothing is fetched)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSet(Path("digits"), pixels, bunch.target.astype(np.int64), tuple(map(str, bunch.target_names)))


def folder(path: str | os.PathLike[str], *, size: int, channels: Channels = 3) -> ImageSet:
    """The images of a folder, centre-cropped to a square and scaled to ``size``.

    Images lie in the folder itself (no labels) or one level below, in a folder for every class. Other files, and those
    whose name begins with a dot, are ignored. Transparency is dropped.

    Raises FileNotFoundError or NotADirectoryError, and `ImageError` for a folder without images, with images on both
    levels, or with one class only, and for a file that is no image, is cut short or damaged, is animated, is huge, or
    has more than 8 bits a channel.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"no folder at {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: a file, not a folder of images")
    below = {entry.name: _images(entry) for entry in sorted(root.iterdir()) if entry.is_dir() and _shown(entry)}
    below = {name: files for name, files in below.items() if files}
    flat = _images(root)
    if flat and below:
        raise ImageError(f"{root}: images both in the folder ({flat[0].name}) and below it ({next(iter(below))}/)")
    if not flat and not below:
        raise ImageError(f"{root}: no images in it or one level below ({', '.join(SUFFIXES)})")
    if len(below) == 1:
        raise ImageError(
            f"{root}: one class only ({next(iter(below))}); a probe needs two. To train without labels, name the "
            "folder that holds the images itself"
        )
    files = flat or [file for group in below.values() for file in group]
    if len(files) * channels * size**2 > MOST_BYTES:
        raise ImageError(f"{root}: {len(files)} images of {size} px exceed {MOST_BYTES >> 30} GiB: try a smaller size")
    pixels = np.stack([read_image(file, size=size, channels=channels) for file in files])
    if flat:
        return ImageSet(root, pixels, None)
    labels = np.repeat(np.arange(len(below)), [len(group) for group in below.values()])
    return ImageSet(root, pixels, labels.astype(np.int64), tuple(below))


def read_image(path: str | os.PathLike[str], *, size: int, channels: Channels = 3) -> NDArray[np.uint8]:
    """One file as uint8 (channels, size, size). Raises `ImageError`, see `folder`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow thinks of metadata; its size warning is ours below
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise ImageError(f"{path}: {width}x{height} pixels, more than {MOST_PIXELS:,}")
                frames = getattr(image, "n_frames", 1)
                if frames > 1:
                    raise ImageError(f"{path}: {frames} frames; an animation is no image")
                if image.mode not in EIGHT_BITS:
                    raise ImageError(f"{path}: mode {image.mode}; expected 8 bits a channel")
                upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
                fitted = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: more than {MOST_PIXELS:,} pixels ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, OverflowError, struct.error) as error:
        # What Pillow's decoders raise, depending on format and place of the damage.
        raise ImageError(f"{path}: cut short or damaged ({error})") from error
    values = np.asarray(fitted, dtype=np.uint8)
    return np.ascontiguousarray(values[None] if channels == 1 else values.transpose(2, 0, 1))


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _images(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and _shown(f))
