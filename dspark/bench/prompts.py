"""Real text to measure on: the held-out prompts that ship with the demo pair, or any JSONL of prompts."""

import json
from importlib import resources
from pathlib import Path


def load_prompts(path: Path | None, count: int) -> list[str]:
    """The first `count` prompts; a line holds {"prompt": text} or {"turns": [text, ...]}. Default: the shipped held-out ones."""
    if path is None:
        text = resources.files("dspark.demo").joinpath("weights", "prompts.jsonl").read_text()
    else:
        text = path.read_text()
    records = [json.loads(line) for line in text.splitlines()[:count]]
    return [record["prompt"] if "prompt" in record else record["turns"][0] for record in records]
