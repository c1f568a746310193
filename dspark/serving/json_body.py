"""JSON from outside, read strictly: UTF-8, no repeated keys, no NaN, no deep nesting, an object at the top.

Knows JSON only; the names and rules of fields are others' business.
"""

import json
from typing import Any

import orjson

from dspark.errors import InvalidRequest

MAX_DEPTH = 16
"""Containers inside each other; the API's own deepest field needs 5."""


def parse_object(body: bytes) -> dict[str, Any]:
    """The object in `body`. Raises InvalidRequest, without repeating any of the body."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON (line {error.lineno}, column {error.colno})") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    _check_depth(value)
    # orjson takes the last of two equal keys in silence; only the standard parser shows them.
    json.loads(body.decode(), object_pairs_hook=_unique_keys, parse_int=len, parse_float=len)
    return value


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            return
    raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def _unique_keys(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise InvalidRequest("the body has the same key twice in one object")
