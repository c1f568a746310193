"""Strict reading: what a file must not contain, and where its mistakes stand."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from deployments.strict import did_you_mean, dotted, parse_yaml, read_yaml, unknown_keys
from dspark.errors import ConfigError

FILE = Path("some.yaml")


class Inner(BaseModel):
    depth: int = 0


class Outer(BaseModel):
    one: Inner = Inner()
    many: list[Inner] = []
    maybe: Inner | None = None
    free: dict[str, Any] = {}


def test_a_location_reads_like_a_path() -> None:
    assert dotted(("applications", 0, "args", "target")) == "applications[0].args.target"


def test_every_key_knows_its_line() -> None:
    file = parse_yaml(FILE, "a: 1\nb:\n  - c: 2\n  - d: 3\n")
    assert file.data == {"a": 1, "b": [{"c": 2}, {"d": 3}]}
    assert (file.lines[("a",)], file.lines[("b", 1, "d")]) == (1, 4)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a: this key stands twice"),
        ("x:\n  y: 1\n  y: 1\n", 3, "x.y: this key stands twice"),
        ("a: &big [1, 2]\nb: *big\n", 2, r"aliases \(\*big\)"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2, "python/object"),
        ("a:\n\tb: 1\n", 2, "cannot start any token"),
        ("a: [1, 2\n", 2, "expected"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^some.yaml:{line}: .*{words}"):
        parse_yaml(FILE, text)


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for path, words in ((tmp_path / "none.yaml", "No such file"), (tmp_path / "latin.yaml", "byte 3 is not UTF-8")):
        with pytest.raises(ConfigError, match=words):
            read_yaml(path)


def test_unknown_keys_are_found_at_every_depth() -> None:
    data = {"one": {"dept": 1}, "many": [{}, {"depth": 1, "widht": 2}], "maybe": {"x": 1}, "free": {"any": 1}, "tow": 1}
    found = {dotted(problem.location): problem.text for problem in unknown_keys(Outer, data)}
    assert found == {
        "one.dept": "unknown key; did you mean 'depth'?",
        "many[1].widht": "unknown key",
        "maybe.x": "unknown key",
        "tow": "unknown key",
    }


def test_values_of_the_wrong_shape_are_left_to_the_model() -> None:
    assert list(unknown_keys(Outer, {"one": 3, "many": {"depth": 1}})) == []
    assert list(unknown_keys(Outer, [1])) == []


def test_a_suggestion_needs_to_be_near() -> None:
    assert did_you_mean("http_optoins", ["http_options", "grpc_options"]) == "; did you mean 'http_options'?"
    assert did_you_mean("colour", ["http_options"]) == ""
