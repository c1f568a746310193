"""The committed stubs are those of the committed .proto files."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools")

ROOT = Path(__file__).resolve().parents[2]


def test_the_stubs_are_those_of_the_proto_files(tmp_path: Path) -> None:
    committed = ROOT / "dspark" / "wire" / "pb"
    if f"'{version('grpcio-tools')}'" not in (committed / "verification_pb2_grpc.py").read_text():
        pytest.skip("another version of the generator writes other text; this says nothing of the .proto files")
    subprocess.run([sys.executable, ROOT / "protos" / "generate.py", tmp_path], check=True, timeout=60)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert fresh.keys() == {path.name for path in committed.iterdir() if path.is_file()}
    for name, text in fresh.items():
        assert (committed / name).read_text() == text, f"{name}: run python protos/generate.py"
