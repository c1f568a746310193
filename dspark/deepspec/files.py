"""Files that are whole or not there at all, and flat columns in safetensors files. Knows nothing of what the columns mean."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dspark.errors import ConfigError

Columns = Mapping[str, NDArray[Any]]
ColumnTypes = Mapping[str, type[np.generic]]


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see the old file or the whole new one, also after a crash. The folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_columns(path: Path, columns: Columns, file_format: str) -> None:
    """One safetensors file, whole or not at all."""
    write_atomically(path, save({name: np.ascontiguousarray(column) for name, column in columns.items()}, {"format": file_format}))


def read_columns(path: Path, types: ColumnTypes, file_format: str, kind: str) -> dict[str, NDArray[Any]]:
    """All columns, each of its type and one-dimensional. Raises ConfigError naming file and column; `kind` says what was expected."""
    try:
        with safe_open(path, framework="np") as file:
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            found = (file.metadata() or {}).get("format")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as a {kind} ({error})") from error
    if found != file_format:
        raise ConfigError(f"{path}: format is {json.dumps(found)}, not {file_format}")
    if set(columns) != set(types):
        missing, extra = sorted(set(types) - set(columns)), sorted(set(columns) - set(types))
        raise ConfigError(f"{path}: missing columns {missing}, unknown columns {extra}")
    for name, column in columns.items():
        if column.dtype != types[name] or column.ndim != 1:
            raise ConfigError(f"{path}: column {name!r} is {column.dtype} {list(column.shape)}, not {np.dtype(types[name])} [n]", name)
    return columns
