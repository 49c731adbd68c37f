"""Opens TIFF files in other readers and compares all their levels.

    python check_tiff.py FILE.tiff|DIRECTORY ...

Each file (each `.tiff` of a directory) is opened in tifffile, libvips, GDAL, OpenSlide and Pillow.
All must see the same number of levels of the same sizes, and the same pixels at every level. If a
PNG of the same name lies beside it, level 0 must equal it too. Tags, colour profile and receipt
are read as well. Files in Zstandard are not opened in libvips, whose Python package has no decoder
of it. Exit code 1 and a line for each difference.
"""

import io
import json
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
import pyvips
import rasterio
import tifffile
from PIL import Image, ImageCms

Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)


def with_tifffile(path):
    """Levels as tifffile's own pyramid, which it finds by NewSubfileType."""
    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ValueError(f"{len(file.series)} series, expected one pyramid")
        return [level.asarray() for level in file.series[0].levels]


def with_libvips(path):
    pages = pyvips.Image.new_from_file(str(path)).get("n-pages")
    return [pyvips.Image.new_from_file(str(path), page=page).numpy() for page in range(pages)]


def with_gdal(path):
    levels = []
    with rasterio.open(path) as dataset:
        overviews = {tuple(dataset.overviews(band)) for band in dataset.indexes}
        if len(overviews) != 1:
            raise ValueError(f"bands differ in their overviews: {overviews}")
        levels.append(np.moveaxis(dataset.read(), 0, 2))
    for level in range(len(overviews.pop())):
        with rasterio.open(path, overview_level=level) as dataset:
            levels.append(np.moveaxis(dataset.read(), 0, 2))
    return levels


def with_openslide(path):
    """OpenSlide gives 8 bits per sample, whatever the file has; 16 bits are rounded to them."""
    with openslide.OpenSlide(str(path)) as slide:
        return [
            np.asarray(slide.read_region((0, 0), level, size))[..., :3]
            for level, size in enumerate(slide.level_dimensions)
        ]


def with_pillow(path):
    """Pillow reads RGB of 8 bits per sample alone."""
    with Image.open(path) as image:
        levels = []
        for frame in range(image.n_frames):
            image.seek(frame)
            levels.append(np.asarray(image))
        return levels


def png_of(path, bits):
    """The PNG beside the TIFF, if there is one. Pillow would cut 16 bits down to 8."""
    twin = path.with_suffix(".png")
    if not twin.exists():
        return None
    image = pyvips.Image.new_from_file(str(twin)).numpy()
    if image.dtype.itemsize * 8 != bits:
        raise ValueError(f"{twin} has {image.dtype.itemsize * 8} bits, the TIFF {bits}")
    return image


def compare(name, levels, expected):
    """Differences of `levels` from `expected`, a line each."""
    sizes = [level.shape for level in levels]
    if sizes != [level.shape for level in expected]:
        yield f"{name} sees {sizes}, tifffile {[level.shape for level in expected]}"
        return
    for number, (level, other) in enumerate(zip(levels, expected)):
        if level.dtype != other.dtype:
            yield f"{name}, level {number}: {level.dtype} instead of {other.dtype}"
        elif not np.array_equal(level, other):
            count = np.count_nonzero(np.any(level != other, axis=2))
            yield f"{name}, level {number}: {count} pixels differ from tifffile's"


def check_metadata(path):
    """Differences in what the first directory says beside the pixels."""
    with tifffile.TiffFile(path) as file:
        pages = list(file.pages)
        first = pages[0]
        for number, page in enumerate(pages):
            if page.is_reduced != (number > 0):
                yield f"level {number}: NewSubfileType is {page.subfiletype}"
            if not page.is_tiled or page.tile != (256, 256):
                yield f"level {number}: tiles of {page.tile}"
            packed = page.compression != tifffile.COMPRESSION.NONE
            expected = tifffile.PREDICTOR.HORIZONTAL if packed else tifffile.PREDICTOR.NONE
            if page.predictor != expected:
                yield f"level {number}: predictor {page.predictor}"
            if page.compression != first.compression:
                yield f"level {number}: {page.compression}, level 0: {first.compression}"
        if not first.tags["Software"].value.startswith("Tessera "):
            yield f"Software is {first.tags['Software'].value!r}"
        if "DateTime" in first.tags:  # only where SOURCE_DATE_EPOCH gave one
            tifffile.strptime(first.tags["DateTime"].value)
        description = first.tags["ImageDescription"].value
        if not description:
            yield "ImageDescription is empty"
        profile = ImageCms.ImageCmsProfile(io.BytesIO(first.tags["InterColorProfile"].value))
        xmp = first.tags["XMP"].value
    to_srgb = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    colours = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    converted = ImageCms.applyTransform(Image.fromarray(colours), to_srgb)
    furthest = np.abs(np.asarray(converted).astype(int) - colours).max()
    if furthest > 1:
        yield f"the colour profile is {furthest} levels away from sRGB"
    receipt = ElementTree.fromstring(xmp).find(".//{urn:tessera:receipt:1#}receipt")
    if receipt is None or not isinstance(json.loads(receipt.text), dict):
        yield "the XMP packet has no receipt"


def compression(path):
    with tifffile.TiffFile(path) as file:
        return file.pages[0].compression


def check(path):
    """All differences found in one file, a line each."""
    expected = with_tifffile(path)
    bits = expected[0].dtype.itemsize * 8
    sizes = [level.shape[1::-1] for level in expected]
    halves = [(-(-width // 2), -(-height // 2)) for width, height in sizes]
    if sizes[1:] != halves[:-1] or max(sizes[-1]) > 256:
        yield f"level sizes {sizes} are not halves of each other down to 256"
    if compression(path) != tifffile.COMPRESSION.ZSTD:
        yield from compare("libvips", with_libvips(path), expected)
    yield from compare("GDAL", with_gdal(path), expected)
    rounded = [(level.astype(np.uint32) + 128) // 257 for level in expected]
    eight_bits = expected if bits == 8 else [level.astype(np.uint8) for level in rounded]
    yield from compare("OpenSlide", with_openslide(path), eight_bits)
    if bits == 8:
        yield from compare("Pillow", with_pillow(path), expected)
    png = png_of(path, bits)
    if png is not None:
        yield from compare("PNG", [png], expected[:1])
    yield from check_metadata(path)


def main(arguments):
    paths = []
    for argument in map(Path, arguments):
        paths += sorted(argument.glob("*.tiff")) if argument.is_dir() else [argument]
    if not paths:
        sys.exit(__doc__)
    failed = False
    for path in paths:
        try:
            differences = list(check(path))
        except Exception as error:  # a reader's own error, whatever its type, is a failure
            differences = [f"{type(error).__name__}: {error}"]
        for difference in differences:
            print(f"{path}: {difference}")
        print(f"{path}: {'FAILED' if differences else 'ok'}")
        failed |= bool(differences)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
