"""Writes the generated modules: messages and stubs from `proto/`, and the blocking client from the asynchronous one.

    python generate.py

Needs the packages of the extra `dev`. The results are committed; CI compares them with their sources.
"""

import importlib.resources
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"
PACKAGE = HERE / "tessera_client"
MESSAGES = ["image", "job_service", "model_service"]
SERVICES = ["job_service", "model_service"]

HEADER = '''"""{title}

Written by `generate.py` from `{source}`. Change that file.
"""
'''

# Words of the asynchronous client, and what the blocking one has.
WORDS = {
    "AsyncIterator": "Iterator",
    "StopAsyncIteration": "StopIteration",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aiter": "iter",
    "anext": "next",
    "asyncio": "time",
}


def files(names: list[str]) -> list[str]:
    """Paths of proto files below `proto/`."""
    return [f"tessera/v1/{name}.proto" for name in names]


def messages() -> None:
    """Compiles the proto files; the modules import each other from the package that they are in."""
    common = importlib.resources.files("grpc_tools") / "_proto"
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        protoc = [sys.executable, "-m", "grpc_tools.protoc"]
        # Without its sources, so that no comment of theirs is copied.
        compiled = Path(folder) / "compiled"
        command = [*protoc, f"-I{PROTO}", f"-I{common}", "--include_imports", f"--descriptor_set_out={compiled}"]
        subprocess.run([*command, *files(MESSAGES)], check=True)
        for names, plugins in ((MESSAGES, ["python", "mypy"]), (SERVICES, ["grpc_python", "mypy_grpc"])):
            command = [*protoc, f"--descriptor_set_in={compiled}"]
            for plugin in plugins:
                quiet = "quiet:" if plugin.startswith("mypy") else ""
                command.append(f"--{plugin}_out={quiet}{folder}")
            subprocess.run([*command, *files(names)], check=True, env=environment)
        for old in (PACKAGE / "_proto").glob("*_pb2*.py*"):
            old.unlink()
        for path in sorted((Path(folder) / "tessera" / "v1").iterdir()):
            text = path.read_text(encoding="utf-8")
            text = text.replace("from tessera.v1 import", "from tessera_client._proto import")
            text = re.sub(r"'tessera\.v1\.(\w+_pb2)'", r"'tessera_client._proto.\1'", text)
            (PACKAGE / "_proto" / path.name).write_text(text, encoding="utf-8")


def blocking(text: str) -> str:
    """The source of the blocking client."""
    body = text.split('"""\n', 1)[1]
    body = re.sub(r"\b(async|await) ", "", body)
    body = re.sub(r"\bAwaitable\[([\w.]+)\]", r"\1", body)
    body = body.replace("import grpc.aio\n", "").replace("grpc.aio.", "grpc.")
    body = re.sub(r"\bAsync(Client|Job|Tiles|Watch)\b", r"\1", body)
    body = re.sub(rf"\b({'|'.join(WORDS)})\b", lambda word: WORDS[word[0]], body)
    return HEADER.format(title="The blocking client.", source="_async.py") + body


def main() -> None:
    """Writes all."""
    messages()
    path = PACKAGE / "_sync.py"
    path.write_text(blocking((PACKAGE / "_async.py").read_text(encoding="utf-8")), encoding="utf-8")
    for command in (["check", "--select", "I,F401", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(path)], check=True, cwd=HERE)


if __name__ == "__main__":
    main()
