"""The programs of docs/src/onnx.md with a model of two labelled colours: the networks are exported to ONNX, a tile decoded by
ONNX Runtime must equal Tessera's, and a picture made by ONNX Runtime alone must have the colour that it was asked for.

    check_onnx.py PROGRAM MODEL PICTURE    PICTURE has at least 556x456 pixels
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tessera_train.__main__ import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "src" / "onnx.md"
ASKED = '{"time": "golden", "water": "lake"}'  # the page's labels


def run(program: str, model: str, picture: str) -> None:
    """Runs the page's programs in a folder that has their files, made by MODEL."""
    tile, whole = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert ASKED in whole
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        by_model = ["--model", model, "--device", "cpu"]
        subprocess.run([program, "encode", picture, "lake.safetensors", *by_model], check=True, capture_output=True)
        decode = ["decode", "lake.safetensors", "lake.tiff", "--seed", "7", "--bits", "16"]
        subprocess.run([program, *decode, *by_model], check=True, capture_output=True)
        assert main(["export", "--model", model, "--onnx", "scenery-onnx"]) == 0
        names: dict = {}
        exec(compile(tile, "docs/src/onnx.md: a tile", "exec"), names)
        report = json.loads(subprocess.run([program, "inspect", model, "--json"], check=True, capture_output=True).stdout)
        assert report["halo"] == names["halo"], f"halo is {names['halo']} in the graph, {report['halo']} in the program"
        for colour, other in (("red", "blue"), ("blue", "red")):
            asked = whole.replace(ASKED, f'{{"folder": "{colour}"}}')
            exec(compile(asked, "docs/src/onnx.md: a picture", "exec"), names)
            mean = dict(zip(("red", "green", "blue"), names["picture"].mean((0, 1))))
            print(f"asked for {colour}: red {mean['red']:.2f}, blue {mean['blue']:.2f}")
            assert mean[colour] > mean[other]


if len(sys.argv) != 4:
    sys.exit(__doc__)
run(*(os.path.abspath(argument) for argument in sys.argv[1:]))
