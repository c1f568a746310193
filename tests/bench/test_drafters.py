"""Which drafters a command line means."""

import pytest

from dspark.bench.drafters import DEFAULT_DRAFTERS, drafter_argument, listed_drafters
from dspark.errors import ConfigError


def test_a_kind_alone_is_the_shipped_drafter_of_that_kind() -> None:
    found = listed_drafters(DEFAULT_DRAFTERS, depth=5)
    assert {name: config.kind for name, config in found.items()} == {
        "lookup": "lookup",
        "language_model": "language_model",
        "block": "block",
    }
    assert (found["language_model"].model, found["block"].model) == ("demo:drafter", "demo:dspark")
    assert {(config.max_depth, config.max_nodes) for config in found.values()} == {(5, 5)}


def test_checkpoints_have_names_and_stand_beside_kinds() -> None:
    found = listed_drafters("lookup, mine=block:build/a, e3=eagle:build/b", depth=7)
    assert list(found) == ["lookup", "mine", "e3"]
    assert (found["mine"].kind, found["mine"].model) == ("block", "build/a")
    assert (found["e3"].kind, found["e3"].model) == ("eagle", "build/b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "name at least one drafter"),
        ("eagle", "NAME=KIND:CHECKPOINT"),
        ("magic", "NAME=KIND:CHECKPOINT"),
        ("a=block:", "NAME=KIND:CHECKPOINT"),
        ("lookup,lookup", "'lookup' is no name"),
        ("none=lookup", "'none' is no name"),
        ("A B=lookup", "'A B' is no name"),
    ],
)
def test_what_is_no_drafter_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        listed_drafters(text, depth=4)


def test_an_argument_of_deepspec_evaluate_may_name_a_device() -> None:
    name, config = drafter_argument("code=eagle:build/code", "cuda")
    assert (name, config.kind, config.model, config.device) == ("code", "eagle", "build/code", "cuda")
