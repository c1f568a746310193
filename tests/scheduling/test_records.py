"""Stored records are read strictly: file and key are named for whatever does not fit."""

import pytest

from dspark.errors import ModelLoadError
from dspark.scheduling.records import check_object, check_version, numbers, parse, some_list


def test_an_object_is_parsed_and_anything_else_names_its_file() -> None:
    assert parse('{"a": 1}', "here.json") == {"a": 1}
    for text in ("", "[1]", "{", "[" * 100_000):
        with pytest.raises(ModelLoadError, match="here.json"):
            parse(text, "here.json")


def test_keys_are_those_expected_and_no_others() -> None:
    check_object({"a": 1, "b": 2}, {"a", "b"}, "here.json")
    for record, said in (({"a": 1}, "things.b is missing"), ({"a": 1, "b": 2, "c": 3}, "things.c is unknown"), ([1], "things is list")):
        with pytest.raises(ModelLoadError, match=f"here.json: {said}"):
            check_object(record, {"a", "b"}, "here.json", "things")


def test_a_version_is_an_integer_of_the_one_value() -> None:
    check_version({"format_version": 1}, 1, "here.json")
    for found in (2, True, "1", 1.0):
        with pytest.raises(ModelLoadError, match="format_version"):
            check_version({"format_version": found}, 1, "here.json")


def test_numbers_are_finite_and_as_many_as_asked_for() -> None:
    assert numbers([1, -2.5], 2, 2, "here.json", "sizes") == (1.0, -2.5)
    for wrong in ([1.0], [1.0, 2.0, 3.0], [1.0, float("inf")], [1.0, float("nan")], [1.0, True], [1.0, "2"], 3, []):
        with pytest.raises(ModelLoadError, match="here.json: sizes"):
            numbers(wrong, 2, 2, "here.json", "sizes")


def test_an_empty_list_is_none() -> None:
    assert some_list([None], "here.json", "things") == [None]
    with pytest.raises(ModelLoadError, match="anything in it"):
        some_list([], "here.json", "things")
