"""The committed protobuf code is what the `.proto` files give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROTO_DIR = Path("proto/v1")


def test_generated_code_is_current(tmp_path):
    subprocess.run([sys.executable, "tools/gen_proto.py", str(tmp_path)], cwd=REPOSITORY, check=True)
    generated = {path.name: path.read_bytes() for path in (tmp_path / "expertmesh" / PROTO_DIR).iterdir()}
    committed = {path.name: path.read_bytes() for path in (REPOSITORY / PROTO_DIR).glob("*_pb2*.py*")}
    assert sorted(generated) == sorted(committed)
    stale = [name for name in generated if generated[name] != committed[name]]
    assert stale == [], "run `make proto`"
