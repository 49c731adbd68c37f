"""Writes seeded variants of pictures by Pillow, tifffile and libvips, and compares what Tessera reads with what libvips
reads: the same pixels within a level of 8 bits, or a refusal by both.

    check_pictures_in.py SAMPLES FOLDER [--count 300] [--seed 1]

SAMPLES is the built example `picture_samples`. The exceptions are listed in docs/src/pictures.md, and in EXCEPTIONS here.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyvips
import tifffile
from PIL import Image

# Kinds of files that Tessera refuses and libvips reads, with a part of the reason that it gives.
EXCEPTIONS = {
    "float": "floating-point samples",
    "unexplained": "unexplained",
    "signed": "signed samples",
}
# Levels of 8 bits by which samples may differ.
TOLERANCE = {"level": 1.01, "plain-ink": 3.01, "profile": 2.51, "ink": 3.01}
# Of lossy files, where decoders enlarge colours of less resolution in their own ways: of the lightness, of a sample at a
# sharp edge of colours, and on average.
TOLERANCE |= {"luma": 2.51, "colour": 16.01, "colour-mean": 1.01}


def profile(name: str) -> bytes:
    """One of libvips' own profiles: srgb, p3 or cmyk."""
    return bytes(pyvips.Operation.call("profile_load", name))


def scene(rng: np.random.Generator, height: int, width: int, channels: int, wide: bool = False) -> np.ndarray:
    """Smooth colours with edges, from 0 to 1: [height, width, channels]; if `wide`, such as sRGB holds when they are
    values of a wider space (what lies outside is clipped by each library in its own way)."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        0.5 + 0.5 * np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + rng.uniform(0, 6)) for _ in range(channels)
    ]
    picture = np.stack(waves, -1)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    picture[top : top + height // 3, left : left + width // 3] = rng.uniform(0, 1, channels)
    if wide:
        picture[..., :3] = 0.35 + 0.3 * picture[..., :3]
    return picture


def levels(picture: np.ndarray, bits: int) -> np.ndarray:
    """Samples of 8 or 16 bits."""
    return np.round(picture * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def pillow(rng, choose, path: Path) -> str:
    """Writes by Pillow; gives the kind of comparison."""
    kind = choose("jpeg", "jpeg", "png", "png", "webp", "tiff", "tiff")
    size = (int(rng.integers(20, 150)), int(rng.integers(20, 150)))
    orientation = choose(1, 1, *range(1, 9))
    icc = choose(None, None, profile("p3"), profile("srgb"))
    rgb = Image.fromarray(levels(scene(rng, *size, 3, wide=icc is not None), 8))
    alpha = Image.fromarray(levels(scene(rng, *size, 1)[..., 0], 8))
    options = {"icc_profile": icc} if icc else {}
    if kind == "jpeg":
        mode = choose("RGB", "RGB", "RGB", "L", "CMYK")
        image = rgb.convert(mode)
        options = {} if mode != "RGB" else options
        sub = choose(0, 1, 2)
        if choose(True, False):
            options["restart_marker_rows"] = 1
        image.save(path, "JPEG", quality=choose(60, 85, 95), subsampling=sub, progressive=choose(True, False),
                   optimize=choose(True, False), exif=exif(orientation), **options)
        return {"L": "level", "CMYK": "plain-ink"}.get(mode, "lossy")
    if kind == "png":
        mode = choose("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "PA")
        if mode == "I;16":
            image = Image.fromarray(levels(scene(rng, *size, 1)[..., 0], 16))
        elif mode == "PA":
            image = rgb.quantize(choose(2, 4, 16, 200))
            options["transparency"] = bytes(rng.integers(0, 256, 16).tolist())
        else:
            image = rgb.quantize(choose(2, 4, 16, 200)) if mode == "P" else rgb.convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(alpha)
        if mode not in ("RGB", "RGBA"):
            options.pop("icc_profile", None)
        image.save(path, "PNG", exif=exif(orientation), **options)
        return "level"
    if kind == "webp":
        image = rgb
        if choose(True, False):
            image = rgb.convert("RGBA")
            image.putalpha(alpha)
        lossless = choose(True, False)
        image.save(path, "WEBP", lossless=lossless, exact=True, quality=80, exif=exif(orientation), **options)
        return "level" if lossless else "lossy"
    mode = choose("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")
    if mode == "I;16":
        image = Image.fromarray(levels(scene(rng, *size, 1)[..., 0], 16))
    else:
        image = rgb.quantize(200) if mode == "P" else rgb.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(alpha)
    if mode not in ("RGB", "RGBA"):
        options.pop("icc_profile", None)
    compression = choose(None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd")
    if compression == "jpeg" and mode not in ("RGB", "L", "CMYK"):
        compression = "tiff_lzw"
    if mode == "1":
        compression = choose(None, "group4", "tiff_lzw")
    if compression == "jpeg":
        options["quality"] = 90
    image.save(path, "TIFF", compression=compression, tiffinfo={274: orientation}, **options)
    if compression == "zstd":
        image.save(plain(path), "TIFF", tiffinfo={274: orientation}, **options)
    return "plain-ink" if mode == "CMYK" else "lossy" if compression == "jpeg" else "level"


def tiff(rng, choose, path: Path) -> str:
    """Writes by tifffile; gives the kind of comparison."""
    size = (int(rng.integers(20, 150)), int(rng.integers(20, 150)))
    bits = choose(8, 16)
    options = {
        "bigtiff": choose(True, False),
        "byteorder": choose("<", ">"),
        "extratags": [(274, "H", 1, choose(1, 1, *range(1, 9)), False)],
    }
    compression = {"compression": choose(None, "zlib", "lzw", "packbits", "zstd")}
    if compression["compression"] in ("zlib", "lzw", "zstd"):
        compression["predictor"] = choose(None, 2)
    if choose(True, False):
        options["tile"] = choose((16, 16), (32, 64), (128, 128))
    else:
        options["rowsperstrip"] = choose(1, 7, 1000)
    form = choose("rgb", "rgb", "rgba", "associated", "gray", "white", "gray-alpha", "palette", "cmyk", "thumbnail",
                  "float", "unexplained")
    if form in ("palette", "float"):
        compression.pop("predictor", None)
    options["planarconfig"] = choose("contig", "separate")
    pages = [options]
    if form == "gray-alpha":
        picture = levels(scene(rng, *size, 2), bits)
        options |= {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    elif form in ("gray", "white", "palette"):
        picture = levels(scene(rng, *size, 1)[..., 0], 8 if form == "palette" else bits)
        options["photometric"] = {"gray": "minisblack", "white": "miniswhite", "palette": "palette"}[form]
        del options["planarconfig"]
        if form == "palette":
            options["colormap"] = rng.integers(0, 65536, (3, 256), dtype=np.uint16)
    else:
        picture = scene(rng, *size, 4 if form in ("rgba", "associated", "cmyk", "unexplained") else 3)
        if form == "associated":
            picture[..., :3] *= picture[..., 3:]
        picture = picture.astype(np.float32) if form == "float" else levels(picture, bits)
        options["photometric"] = "separated" if form == "cmyk" else "rgb"
        extra = {"rgba": "unassalpha", "associated": "assocalpha", "unexplained": "unspecified"}.get(form)
        options["extrasamples"] = [extra] if extra else None
        if form == "thumbnail":
            pages = [options | {"subfiletype": 1}, options]
    common = {"bigtiff": options.pop("bigtiff"), "byteorder": options.pop("byteorder")}
    for name, packing in [(path, compression), (plain(path), {})]:
        with tifffile.TiffWriter(name, **common) as file:
            for page in pages:
                page = {k: v for k, v in page.items() if k not in common}
                values = picture[:, ::4] if "subfiletype" in page else picture
                if name != path:
                    page = {k: v for k, v in page.items() if k not in ("tile", "rowsperstrip", "planarconfig")}
                elif page.get("planarconfig") == "separate":
                    values = np.moveaxis(values, -1, 0)
                page.setdefault("planarconfig", "contig" if values.ndim == 3 else None)
                file.write(values, **page, **packing)
    return form if form in (*EXCEPTIONS, "thumbnail") else "plain-ink" if form == "cmyk" else "level"


def plain(path: Path) -> Path:
    """Where the same picture lies in strips without compression or planes: libvips does not read planes in tiles, nor
    does its Python package read Zstandard."""
    return path.with_name(f"{path.name}.plain")


def vips(rng, choose, path: Path) -> str:
    """Writes by libvips; gives the kind of comparison."""
    size = (int(rng.integers(20, 150)), int(rng.integers(20, 150)))
    bits = choose(8, 16)
    bands = choose(1, 2, 3, 3, 4)
    with_profile = bands > 2 and choose(True, False)
    array = levels(scene(rng, *size, bands, wide=with_profile), bits)
    interpretation = {8: ("b-w", "srgb"), 16: ("grey16", "rgb16")}[bits][bands > 2]
    image = pyvips.Image.new_from_array(np.ascontiguousarray(array), interpretation=interpretation)
    kind, form = "level", choose("tiff", "tiff", "tiff", "png", "webp", "jpeg", "cmyk", "lab")
    if form == "cmyk":
        image = pyvips.Image.new_from_array(levels(scene(rng, *size, 3, wide=True), 8), interpretation="srgb")
        image = image.icc_transform("cmyk", input_profile="srgb")
        if choose(True, False):
            image.tiffsave(str(path), compression=choose("none", "lzw", "deflate"))
        else:
            image.jpegsave(str(path), Q=90, subsample_mode=choose("off", "on"))
        return "ink"
    if form == "lab":
        image = pyvips.Image.new_from_array(levels(scene(rng, *size, 3), 8), interpretation="srgb")
        space = choose("labs", "lab")
        image.colourspace(space).tiffsave(str(path), compression="lzw")
        return "float" if space == "lab" else "signed"
    if with_profile:
        image = image.copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile("p3"))
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", choose(1, 1, *range(1, 9)))
    if form == "tiff":
        compression = choose("none", "deflate", "lzw", "jpeg", "webp", "packbits")
        if compression in ("jpeg", "webp"):
            image = pyvips_8bit(image)
            image = image[:3] if compression == "jpeg" and image.bands == 4 else image
            image = image[:1] if compression == "jpeg" and image.bands == 2 else image
        if compression == "webp" and image.bands < 3:
            compression = "deflate"
        kind = {"jpeg": "lossy", "webp": "lossy"}.get(compression, "level")
        image.tiffsave(
            str(path), compression=compression, Q=90, tile=choose(True, False), tile_width=choose(16, 64),
            tile_height=choose(32, 128), pyramid=choose(True, False), bigtiff=choose(True, False),
            predictor=choose("none", "horizontal"), premultiply=choose(True, False) if kind == "level" else False,
            miniswhite=image.bands == 1 and choose(True, False),
        )
    elif form == "png":
        image.pngsave(str(path), interlace=choose(True, False), palette=bits == 8 and bands > 2 and choose(True, False))
    elif form == "webp":
        lossless = choose(True, False)
        pyvips_8bit(image).webpsave(str(path), lossless=lossless, exact=True)
        kind = "level" if lossless else "lossy"
    else:
        pyvips_8bit(image)[: 3 if bands > 2 else 1].jpegsave(
            str(path), Q=choose(50, 90), subsample_mode=choose("on", "off"), interlace=choose(True, False),
            restart_interval=choose(0, 1, 5), optimize_coding=choose(True, False))
        kind = "lossy"
    return kind


def pyvips_8bit(image: pyvips.Image) -> pyvips.Image:
    """The same picture in 8 bits."""
    if image.format == "uchar":
        return image
    return (image >> 8).cast("uchar").copy(interpretation="srgb" if image.bands > 2 else "b-w")


def has_profile(path: Path) -> bool:
    return pyvips.Image.new_from_file(str(path)).get_typeof("icc-profile-data") != 0


def reference(path: Path, kind: str) -> np.ndarray:
    """The picture as libvips reads it: sRGB over white, upright, from 0 to 255. Raises what libvips raises."""
    page = {"page": 1} if kind == "thumbnail" else {}
    path = plain(path) if plain(path).exists() else path
    image = pyvips.Image.new_from_file(str(path), fail_on="warning", **page).autorot()
    if image.get_typeof("icc-profile-data") and image.interpretation not in ("b-w", "grey16"):
        depth = 16 if image.format == "ushort" else 8
        alpha = image[image.bands - 1] if image.hasalpha() else None
        image = image.icc_transform("srgb", embedded=True, intent="perceptual", depth=depth)
        if alpha is not None and not image.hasalpha():
            image = image.bandjoin(alpha)
    elif kind == "plain-ink":
        inks = image.numpy() / (65535 if image.format == "ushort" else 255)
        return 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
    elif image.interpretation not in ("srgb", "rgb16", "b-w", "grey16"):
        image = image.colourspace("srgb")
    white = 65535 if image.format == "ushort" else 255
    pixels = image.numpy().astype(np.float64).reshape(image.height, image.width, image.bands) / white
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:]
        pixels = pixels[..., :-1] * alpha + 1 - alpha
    return 255 * np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def differences(samples: np.ndarray, expected: np.ndarray, kind: str, path: Path) -> dict[str, float]:
    """The differences in 8-bit levels, by the names of TOLERANCE."""
    apart = np.abs(samples - expected)
    if kind == "lossy":
        luma = np.abs((samples - expected) @ [0.299, 0.587, 0.114])
        return {"luma": luma.max(), "colour": apart.max(), "colour-mean": apart.mean()}
    if kind in TOLERANCE and kind != "level":
        return {kind: apart.max()}
    return {"profile" if has_profile(plain(path) if plain(path).exists() else path) else "level": apart.max()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("samples", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    kinds = {}
    for number in range(args.count):
        rng = np.random.default_rng([args.seed, number])
        pick = random.Random(f"{args.seed} {number}")
        writer = [pillow, tiff, vips][number % 3]
        path = args.folder / f"{number:03}-{writer.__name__}"
        kinds[str(path)] = writer(rng, lambda *options: pick.choice(options), path)
    told = subprocess.run([args.samples], input="\n".join(kinds), text=True, stdout=subprocess.PIPE, check=True).stdout
    bad, refused, worst = [], 0, {}
    for line in map(json.loads, told.splitlines()):
        path = Path(line["path"])
        kind = kinds[line["path"]]
        error = line.get("error")
        if kind in EXCEPTIONS:
            refused += 1
            if not error or EXCEPTIONS[kind] not in error:
                bad.append(f"{path.name}: {kind} was not refused for it: {error}")
            continue
        try:
            expected = reference(path, kind)
        except pyvips.Error as failure:
            refused += 1
            if not error:
                bad.append(f"{path.name}: read, but refused by libvips: {failure}")
            continue
        if error:
            bad.append(f"{path.name}: refused, but read by libvips: {error}")
            continue
        if expected.shape != (line["height"], line["width"], 3):
            bad.append(f"{path.name}: {line['width']}x{line['height']}, but {expected.shape} by libvips")
            continue
        samples = np.fromfile(f"{path}.samples", "<u2").reshape(expected.shape) / 257
        for name, difference in differences(samples, expected, kind, path).items():
            worst[name] = max(worst.get(name, 0), difference)
            if difference > TOLERANCE[name] or line["notices"]:
                bad.append(f"{path.name}: differs by {difference:.2f} levels ({name}) {line['notices']}")
    print("\n".join(bad))
    print(f"{len(kinds)} pictures, {refused} refused as expected, {len(bad)} wrong; largest differences:",
          ", ".join(f"{name} {value:.2f}" for name, value in sorted(worst.items())))
    return 1 if bad or len(told.splitlines()) != len(kinds) else 0


if __name__ == "__main__":
    sys.exit(main())
