"""One picture of a user: from a file of any usual kind to RGB of a given size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp"))
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 2**28
Image.MAX_IMAGE_PIXELS = None  # `read` has a limit of its own, above Pillow's
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class Unusable(ValueError):
    """Why a file is left out."""


def read(path: Path, width: int, height: int) -> np.ndarray:
    """The picture in `path` as uint8 [height, width, 3], sRGB: upright by its EXIF orientation, its middle at the
    wanted aspect, scaled down. Unusable, with the reason, if it can't be read or is smaller than that."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return fitted(image, width, height)
    except Unusable:
        raise
    except UnidentifiedImageError as error:
        raise Unusable("not a JPEG, PNG, TIFF or WebP") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise Unusable(f"cannot be read: {error or type(error).__name__}") from error


def fitted(image: Image.Image, width: int, height: int) -> np.ndarray:
    """`read` of an opened file."""
    # Pillow applies a TIFF's orientation by itself, to the size at once and to the pixels when they are loaded.
    orientation = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    turned = orientation in (5, 6, 7, 8)
    w, h = reversed(image.size) if turned else image.size
    if w < width or h < height:
        raise Unusable(f"{w}x{h}, smaller than {width}x{height}")
    if w * h > MAX_PIXELS:
        raise Unusable(f"{w}x{h} pixels, the limit is {MAX_PIXELS} in all")
    image.draft("RGB", (height, width) if turned else (width, height))  # JPEGs decode faster at a half, quarter, eighth
    image.load()
    rgb = to_rgb(ImageOps.exif_transpose(image))
    scale = min(rgb.width / width, rgb.height / height)
    left, top = (rgb.width - width * scale) / 2, (rgb.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return np.asarray(rgb.resize((width, height), Image.Resampling.LANCZOS, box))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits are rounded to 8, transparency lies over white, an embedded colour profile is applied."""
    if image.mode == "F":
        raise Unusable("floating-point samples")
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise Unusable("32-bit samples")
        image = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return colours(image)
    image = image.convert("RGBA") if image.mode != "RGBA" else image
    white = Image.new("RGB", image.size, "white")
    opaque = image.convert("RGB")
    opaque.info = dict(image.info)
    return Image.composite(colours(opaque), white, image.getchannel("A"))


def colours(image: Image.Image) -> Image.Image:
    """An image without transparency to RGB, by its colour profile if it has one that fits its mode."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("L", "RGB", "CMYK"):
        try:
            return ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile or one of another kind of colours says nothing about the picture
    return image.convert("RGB")
