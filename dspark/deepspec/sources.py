"""Where prompts come from: JSONL, Parquet, a saved data set, or a data set of the Hugging Face hub, all as numbered records.

Knows files and the two libraries that read them, which are optional: `pip install 'dspark[data]'`. Does not know what a record means.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from dspark.errors import ConfigError

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
HASH_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """One line or row."""

    place: str
    """File and line, for messages."""
    fields: dict[str, Any] | None
    """None: the line is no JSON object; `problem` says why."""
    problem: str = ""


class Source:
    """All records of a file, a folder of files, or a data set, in an order that is the same each time."""

    def __init__(self, name: str, *, subset: str | None = None, split: str = "train") -> None:
        self.name = name
        self._subset = subset
        self._split = split
        self._files = _files(Path(name).expanduser())
        self._data_set = None if self._files else self._open_data_set()

    def fingerprint(self) -> str:
        """Changes when any record does."""
        if self._data_set is not None:
            return str(self._data_set._fingerprint)
        digest = hashlib.sha256()
        for path in self._files:
            _add_file(digest, path)
        return digest.hexdigest()

    def records(self) -> Iterator[Record]:
        """From the first one on; may be asked for again."""
        if self._data_set is not None:
            for number, fields in enumerate(self._data_set):
                yield Record(f"{self.name}[{self._split}]:{number}", dict(fields))
        for path in self._files:
            yield from _parquet(path) if path.suffix in PARQUET_SUFFIXES else _jsonl(path)

    def _open_data_set(self) -> Any:
        folder = Path(self.name).expanduser()
        if not folder.is_dir() and self.name.startswith(("/", ".", "~")):
            raise ConfigError(f"{self.name}: no such file or folder", "prompts")
        datasets = _library("datasets", self.name)
        try:
            if folder.is_dir():
                found = datasets.load_from_disk(str(folder))
            else:
                found = datasets.load_dataset(self.name, self._subset, split=self._split)
        except Exception as error:  # the library raises whatever lies below it
            raise ConfigError(f"{self.name}: cannot be read as a data set ({type(error).__name__}: {error})", "prompts") from error
        if isinstance(found, datasets.DatasetDict):
            if self._split not in found:
                raise ConfigError(f"{self.name}: has no split {self._split!r}, only {', '.join(found)}", "split")
            found = found[self._split]
        return found


def _files(path: Path) -> list[Path]:
    """The files to read; empty if it is for the `datasets` library."""
    if path.is_file():
        if path.suffix not in (*JSONL_SUFFIXES, *PARQUET_SUFFIXES):
            known = ", ".join((*JSONL_SUFFIXES, *PARQUET_SUFFIXES))
            raise ConfigError(f"{path}: unknown kind of file; prompts are read from {known}", "prompts")
        return [path]
    if not path.is_dir() or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return []
    found = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".ndjson", *PARQUET_SUFFIXES))
    if not found:
        raise ConfigError(f"{path}: holds neither JSONL nor Parquet files nor a saved data set", "prompts")
    return found


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parsed(f"{path}:{number}", line)


def _parsed(place: str, line: bytes) -> Record:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Record(place, None, f"not JSON ({error})")
    return Record(place, fields) if isinstance(fields, dict) else Record(place, None, "not a JSON object")


def _parquet(path: Path) -> Iterator[Record]:
    parquet = _library("pyarrow.parquet", str(path))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:row {number}", fields)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ConfigError(f"{path}: cannot be read as Parquet after row {number} ({error})", "prompts") from error


def _library(module: str, name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(
            f"{name}: reading it needs the library {library}, which is not installed: pip install 'dspark[data]'", "prompts"
        ) from error


def _add_file(digest: Any, path: Path) -> None:
    digest.update(path.stat().st_size.to_bytes(8, "little"))
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
