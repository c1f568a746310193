"""What `import dspark` offers, and how light it is."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dspark

ROOT = Path(__file__).resolve().parents[1]


def test_public_names_are_sorted_and_come_once() -> None:
    assert dspark.__all__ == sorted(set(dspark.__all__))
    assert set(dspark.__all__) <= set(dir(dspark))


@pytest.mark.parametrize("name", dspark.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(dspark, name)
    assert value is not None
    assert getattr(value, "__name__", name) == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = dspark.Motor


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, dspark; print(sorted({'torch', 'ray', 'transformers', 'grpc', 'numpy', 'fastapi'} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert finished.stdout.strip() == "[]"


def test_the_version_is_that_of_the_distribution() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == dspark.__version__
