"""Orders a picture from a Tessera server, collects its tiles as they arrive, and writes them to a TIFF.

    python generate.py --seed 7 --size 1024x512 --out picture.tiff

Every tile's CRC32C is checked. If the connection breaks or the server restarts, the stream is requested again from the
last event received, so nothing is lost and nothing is computed twice. The gRPC stubs are generated from `proto/` when
the program starts.
"""

import argparse
import contextlib
import importlib
import importlib.resources
import json
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

import grpc
import numpy as np
import tifffile

PROTO = Path(__file__).resolve().parents[2] / "proto"
FILES = ["image", "job_service", "model_service"]
# A raw tile of the largest size, 1024 x 1024 pixels of 6 bytes, and the message around it.
MAX_MESSAGE = 8 << 20


def load_stubs(proto):
    """Compiles the proto files into a temporary folder; returns the modules of job_service.proto: messages and service."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        common = importlib.resources.files("grpc_tools") / "_proto"
        names = [f"tessera/v1/{name}.proto" for name in FILES]
        flags = [f"-I{proto}", f"-I{common}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        if protoc.main(["protoc", *flags, *names]) != 0:
            raise SystemExit(f"the files in {proto} can't be compiled")
        sys.path.insert(0, folder)
        try:
            messages = importlib.import_module("tessera.v1.job_service_pb2")
            service = importlib.import_module("tessera.v1.job_service_pb2_grpc")
        finally:
            sys.path.remove(folder)
    return messages, service


def crc32c_table():
    """CRC32C (Castagnoli) of every byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC32C = crc32c_table()


def crc32c(data):
    """The checksum of a tile. The package `crc32c` computes it a thousand times faster, if it is installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("crc32c").crc32c(data)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def connect(args):
    """Returns a channel to the server, and the headers of every call."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.keepalive_time_ms", 30_000),
    ]
    token = os.environ.get("TESSERA_TOKEN")
    headers = [("authorization", f"Bearer {token}")] if token else []
    if args.ca:
        credentials = grpc.ssl_channel_credentials(Path(args.ca).read_bytes())
        return grpc.secure_channel(args.server, credentials, options), headers
    return grpc.insecure_channel(args.server, options), headers


def events(service, messages, name, headers):
    """Yields every event of the job once and in order, over as many streams as are needed."""
    seen, pause = 0, 0.1
    while True:
        options = messages.StreamOptions(without_previews=True)
        request = messages.WatchJobRequest(name=name, after_sequence=seen, options=options)
        try:
            for message in service.WatchJob(request, metadata=headers):
                seen, pause = message.event.sequence, 0.1
                yield message.event
                if message.event.WhichOneof("event") in ("finished", "failed", "cancelled"):
                    return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            print(f"connection lost, continuing after event {seen}: {error.details()}", file=sys.stderr)
        # Random pauses: clients that lost their connections together should not all return together.
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 4)


def samples(tile, bits):
    """Returns the pixels of a raw tile after checking its CRC32C."""
    found = crc32c(tile.data)
    if found != tile.crc32c:
        place = f"column {tile.column}, row {tile.row}"
        raise SystemExit(f"the tile in {place} is damaged: CRC32C {found:08x} instead of {tile.crc32c:08x}")
    shape = (tile.rect.height, tile.rect.width, 3)
    return np.frombuffer(tile.data, "<u2" if bits == 16 else "u1").reshape(shape)


def generate(args):
    """Orders the picture and collects its tiles; returns the pixels, the description and the generation metadata."""
    messages, stubs = load_stubs(PROTO)
    channel, headers = connect(args)
    with channel:
        service = stubs.JobServiceStub(channel)
        width, height = args.size
        spec = messages.JobSpec(
            seed=args.seed, width=width, height=height, steps=args.steps, tile_size=args.tile, bits=args.bits
        )
        # The request id makes it safe to send the request again: both create the same job.
        order = messages.CreateJobRequest(spec=spec, request_id=str(uuid.uuid4()))
        job = service.CreateJob(order, metadata=headers, timeout=60, wait_for_ready=True).job
        print(f"{job.name}  {job.spec.width} x {job.spec.height}  seed {job.spec.seed}  {job.spec.steps} steps")

        depth = np.uint16 if job.spec.bits == 16 else np.uint8
        picture = np.zeros((job.spec.height, job.spec.width, 3), depth)
        done, tiles = 0, job.tile_columns * job.tile_rows
        for event in events(service, messages, job.name, headers):
            kind = event.WhichOneof("event")
            if kind == "started":
                print(f"on {event.started.device}")
            elif kind == "step":
                print(f"step {event.step.step} of {event.step.of}")
            elif kind == "level_settled":
                level = event.level_settled
                print(f"level {level.level} is settled: {level.columns} x {level.rows}")
            elif kind == "tile":
                rect = event.tile.rect
                picture[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] = samples(
                    event.tile, job.spec.bits
                )
                done += 1
                print(f"tile {done} of {tiles}: {rect.width} x {rect.height} at {rect.x},{rect.y}")
            elif kind == "failed":
                raise SystemExit(f"{job.name} failed: {event.failed.message}")
            elif kind == "cancelled":
                raise SystemExit(f"{job.name} was cancelled")
            elif kind == "finished":
                if done != tiles:
                    raise SystemExit(f"{job.name} is finished, but {done} of {tiles} tiles arrived")
                return picture, event.finished.description, json.loads(event.finished.receipt)


def write(path, picture, description):
    """Writes the file under a temporary name and renames it, so that it is complete or does not exist."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        tifffile.imwrite(
            partial, picture, photometric="rgb", tile=(256, 256), compression="zlib", description=description,
            metadata=None,
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check(picture, path):
    """Compares the pixels with those of a file from `tessera generate` or `tessera fetch`."""
    expected = tifffile.imread(path)
    if expected.shape != picture.shape or expected.dtype != picture.dtype:
        raise SystemExit(f"{path} is {expected.shape} {expected.dtype}, not {picture.shape} {picture.dtype}")
    differing = np.count_nonzero((expected != picture).any(axis=2))
    if differing:
        raise SystemExit(f"{differing} pixels differ from {path}")
    print(f"all {picture.shape[0] * picture.shape[1]} pixels equal those of {path}")


def size(text):
    """Parses width and height, as in 2048x1024."""
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height, such as 2048x1024") from None
    return width, height


def main():
    """Runs the command line."""
    assert crc32c(b"123456789") == 0xE3069283, "the checksum's check value"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="127.0.0.1:50051", help="host and port (default: %(default)s)")
    parser.add_argument("--ca", metavar="FILE", help="certificate authority of the server, PEM; enables TLS")
    parser.add_argument("--seed", type=int, default=0, help="key of the noise")
    parser.add_argument("--size", type=size, default=(0, 0), metavar="WxH", help="default: the model's own")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile in pixels (default: %(default)s)")
    parser.add_argument("--bits", type=int, default=8, choices=(8, 16), help="bits of a sample")
    parser.add_argument("--out", type=Path, default=Path("picture.tiff"), help="file to write (default: %(default)s)")
    parser.add_argument("--check-against", type=Path, metavar="FILE", help="compare the pixels with a TIFF's")
    args = parser.parse_args()
    try:
        picture, description, receipt = generate(args)
    except grpc.RpcError as error:
        raise SystemExit(f"{error.code().name}: {error.details()}") from None
    except ValueError as error:
        # A number outside the range of its field, such as a negative one.
        raise SystemExit(f"the request can't be sent: {error}") from None
    write(args.out, picture, description)
    print(f"{args.out}  {description}  model {receipt['model_sha256'][:12]}")
    if args.check_against:
        check(picture, args.check_against)


if __name__ == "__main__":
    main()
