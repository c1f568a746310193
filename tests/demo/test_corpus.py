"""What the shipped pair was trained on, and what it shipped with."""

import json
import re
from importlib import resources

from dspark.demo import corpus

WEIGHTS = resources.files("dspark.demo").joinpath("weights")


def shipped_manifest() -> list[dict[str, object]]:
    return [json.loads(line) for line in WEIGHTS.joinpath("manifest.jsonl").read_text().splitlines()]


def test_about_one_file_in_twenty_is_held_out_by_its_name_alone() -> None:
    manifest = shipped_manifest()
    assert len(manifest) > 3000
    assert all(entry["held_out"] == corpus.is_held_out(str(entry["name"])) for entry in manifest)
    assert 0.035 < sum(bool(entry["held_out"]) for entry in manifest) / len(manifest) < 0.065


def test_the_manifest_names_every_file_once_with_its_hash() -> None:
    manifest = shipped_manifest()
    assert len({entry["name"] for entry in manifest}) == len({entry["sha256"] for entry in manifest}) == len(manifest)
    assert all(re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])) for entry in manifest)
    assert {str(entry["name"]).split("/")[0] for entry in manifest} <= {corpus.STANDARD_LIBRARY, *corpus.PACKAGES}


def test_the_cards_tell_a_held_out_perplexity_of_at_most_thirty() -> None:
    for name in ("target", "drafter"):
        card = WEIGHTS.joinpath(name, "README.md").read_text()
        (perplexity,) = re.findall(r"Held-out perplexity per token, of these bf16 weights: \*\*([\d.]+)\*\*", card)
        assert float(perplexity) <= 30
        assert "demonstration model" in card


def test_documented_functions_become_questions_and_answers() -> None:
    module = '''
def add(a, b):
    """Add two numbers and return the sum of them.

    More about it.
    """
    total = a + b
    return total


def undocumented():
    x = 1
    return x
'''
    ((question, answer),) = corpus.instruction_pairs(module)
    assert question == "Write a function: Add two numbers and return the sum of them."
    assert answer == "def add(a, b):\n    total = a + b\n    return total"
    assert corpus.instruction_pairs("def broken(:") == []


def test_all_weights_together_stay_below_24_megabytes() -> None:
    total = sum(len(path.read_bytes()) for folder in ("target", "drafter") for path in WEIGHTS.joinpath(folder).iterdir())
    assert total <= 24 * 1024 * 1024
