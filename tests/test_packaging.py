"""The wheel holds everything that an installed DSpark needs, and nothing of the workshop."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy of the tracked and new files, so that the working tree gets no build folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    _copy_tree(source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    subprocess.run(command, check=True, timeout=240)
    [path] = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def _copy_tree(destination: Path) -> None:
    """What a clone would hold: git's list of files."""
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            (destination / name).write_bytes((ROOT / name).read_bytes())


def source_files(pattern: str) -> list[str]:
    """Names of the files below the root that match, none of them a by-product."""
    paths = [path for path in ROOT.glob(pattern) if path.is_file() and "__pycache__" not in path.parts]
    assert paths, f"nothing matches {pattern}"
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize(
    "pattern",
    [
        "dspark/**/*.py",
        "deployments/**/*.py",
        "dspark/py.typed",
        "dspark/wire/pb/*.pyi",
        "dspark/serving/playground/**/*",
        "dspark/demo/weights/**/*",
    ],
)
def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile, pattern: str) -> None:
    assert set(source_files(pattern)) <= set(wheel.namelist())


def test_the_wheel_holds_the_protocol_definitions(wheel: zipfile.ZipFile) -> None:
    shipped = {name.split("/data/share/dspark/")[1] for name in wheel.namelist() if "/data/share/dspark/" in name}
    assert shipped == set(source_files("protos/**/*.proto"))


def test_the_wheel_holds_the_licence_and_the_notices(wheel: zipfile.ZipFile) -> None:
    names = {Path(name).name for name in wheel.namelist() if ".dist-info/licenses/" in name}
    assert names == {"LICENSE", "THIRD_PARTY_NOTICES.md"}


def test_the_wheel_holds_nothing_of_the_workshop(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tops == {"dspark", "deployments", f"dspark-{version}.dist-info", f"dspark-{version}.data"}


def test_the_command_and_the_requirements_are_declared(wheel: zipfile.ZipFile) -> None:
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "dspark = deployments.cli:main" in wheel.read(entry_points).decode()
    [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = wheel.read(metadata).decode().splitlines()
    assert "Requires-Python: >=3.11" in lines
    assert any(line.startswith("Requires-Dist: ray[serve-grpc]") for line in lines)


def test_every_requirement_is_pinned_by_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {_name(requirement) for group in [project["dependencies"], *extras.values()] for requirement in group}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line and "/" not in line and "+" not in line for line in lines)
    assert wanted <= {_name(line) for line in lines}


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return canonicalize_name(Requirement(requirement).name)
