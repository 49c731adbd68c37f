"""The examples of the documents, run from top to bottom against a server."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, Server

PACKAGE = ROOT / "clients" / "python"


@pytest.fixture(autouse=True)
def environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SERVER", server.url)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    PIL.Image.fromarray(pixels).save("photo.jpg")


@pytest.mark.parametrize("name", ["docs/src/clients.md", "clients/python/README.md"])
def test_examples_of_documents_run(name: str, server: Server, capsys: pytest.CaptureFixture[str]):
    text = (ROOT / name).read_text(encoding="utf-8").replace("http://127.0.0.1:50051", server.url)
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
    assert namespace["picture"].pixels.ndim == 3  # type: ignore[attr-defined]
    assert "Rect(x=0, y=0" in capsys.readouterr().out


def test_the_notebook_runs_and_shows_its_pictures():
    notebook = nbformat.read(PACKAGE / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) == 2
    for html in shown:
        assert html.count("<img") == 1
        assert "finished" in html
    tile = next(cell for cell in notebook.cells if cell.source == "next(iter(job))")
    assert "image/png" in tile.outputs[0].data
