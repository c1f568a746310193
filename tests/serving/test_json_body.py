import time

import pytest

from dspark.errors import InvalidRequest
from dspark.serving.json_body import parse_object


def test_an_object_is_read() -> None:
    assert parse_object(b'{"a": [1, 2.5, "x", null, {"b": true}]}') == {"a": [1, 2.5, "x", None, {"b": True}]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"a"',
        b'{"a": 1',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"n": 1, "n": 5}',
        b'{"a": [{"n": 1, "n": 1}]}',
        b'{"a": 1, "\\u0061": 2}',
    ],
)
def test_a_body_that_is_not_one_clear_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(body)
    assert len(caught.value.message) < 100


@pytest.mark.parametrize("depth", [17, 900, 200_000])
def test_deep_nesting_is_refused_quickly(depth: int) -> None:
    started_s = time.perf_counter()
    with pytest.raises(InvalidRequest):
        parse_object(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")
    with pytest.raises(InvalidRequest):
        parse_object(b'{"a":' * depth + b"1" + b"}" * depth)
    assert time.perf_counter() - started_s < 1.0
