"""Which drafters a command line means."""

import pytest

from dspark.bench.drafters import DEFAULT_DRAFTERS, as_trees, drafter_argument, listed_drafters
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


def test_trees_of_all_drafters_and_lookup_beside_those_that_have_a_model() -> None:
    found = as_trees(listed_drafters(f"{DEFAULT_DRAFTERS},e3=eagle:build/b", depth=7), nodes=16, width=4, with_lookup=True)
    assert {(config.max_depth, config.max_nodes, config.max_width) for config in found.values()} == {(7, 16, 4)}
    assert {name: config.with_lookup for name, config in found.items()} == {
        "lookup": False,
        "language_model": True,
        "block": True,
        "e3": True,
    }


def test_without_a_number_of_candidates_drafters_stay_as_they_are() -> None:
    listed = listed_drafters(DEFAULT_DRAFTERS, depth=4)
    assert as_trees(listed, nodes=0, width=4) == listed


def test_lookup_does_not_go_with_itself() -> None:
    with pytest.raises(ConfigError, match="has a model"):
        as_trees(listed_drafters("lookup", depth=4), nodes=0, width=4, with_lookup=True)
