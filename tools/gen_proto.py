"""Regenerates the committed protobuf code from proto/v1/*.proto: `python tools/gen_proto.py [OUT]`.

The files are written beside the `.proto` files, or under OUT (a folder that takes the place of `src`).
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

SRC = Path(__file__).resolve().parent.parent / "src"
PROTO_DIR = Path("expertmesh/proto/v1")


def generate(out: Path) -> list[Path]:
    """Writes `_pb2.py`, `_pb2.pyi` and `_pb2_grpc.py` of every `.proto` under `out`; returns the protos."""
    protos = sorted((SRC / PROTO_DIR).glob("*.proto"))
    (out / PROTO_DIR).mkdir(parents=True, exist_ok=True)
    command = [
        "protoc",
        f"-I{SRC}",
        f"-I{resources.files('grpc_tools') / '_proto'}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        *(str(path) for path in protos),
    ]
    if (code := protoc.main(command)) != 0:
        raise SystemExit(f"protoc failed with code {code}: {' '.join(command)}")
    return protos


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SRC)
