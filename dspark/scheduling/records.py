"""Strict reading of stored JSON records: what is missing, unknown or of no sane size is refused with file and key."""

import json
from pathlib import Path
from typing import Any

from dspark.errors import ModelLoadError

MAX_JSON_BYTES = 1024 * 1024
MAX_NUMBER = 1e9


def read_text(path: Path) -> str:
    """A record's file as it is. Raises ModelLoadError naming the file where it cannot be read, or is larger than any record."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelLoadError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: cannot be read ({error})") from error


def parse(text: str, file: str) -> dict[str, Any]:
    """The text's one object. Raises ModelLoadError naming the file."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(record, dict):
        raise ModelLoadError(f"{file}: holds {type(record).__name__}, not an object")
    return record


def check_object(record: Any, expected: set[str], file: str, key: str = "") -> None:
    """Raise ModelLoadError unless `record` is an object of exactly these keys; `key` is its own place in the file."""
    if not isinstance(record, dict):
        raise ModelLoadError(f"{file}: {key} is {type(record).__name__}, not an object", key)
    prefix = f"{key}." if key else ""
    for name in sorted(expected ^ set(record)):
        raise ModelLoadError(f"{file}: {prefix}{name} is {'missing' if name in expected else 'unknown'}", f"{prefix}{name}")


def check_version(record: dict[str, Any], version: int, file: str, key: str = "format_version") -> None:
    """Raise ModelLoadError unless format_version is this one."""
    found = record["format_version"]
    if type(found) is not int or found != version:
        raise ModelLoadError(f"{file}: {key} {found!r} is not {version}", key)


def some_list(value: Any, file: str, key: str) -> list[Any]:
    """A list with anything in it."""
    if not isinstance(value, list) or not value:
        raise ModelLoadError(f"{file}: {key} is not a list with anything in it", key)
    return value


def numbers(value: Any, least: int, most: int, file: str, key: str) -> tuple[float, ...]:
    """Finite numbers; true and false are none."""
    items = some_list(value, file, key)
    if not least <= len(items) <= most:
        raise ModelLoadError(f"{file}: {key} holds {len(items)} numbers, not {least} to {most}", key)
    if not all(type(item) in (int, float) and -MAX_NUMBER <= item <= MAX_NUMBER for item in items):
        raise ModelLoadError(f"{file}: {key} holds something that is not a number of a sane size", key)
    return tuple(float(item) for item in items)
