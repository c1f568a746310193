"""Prompts for the tutorial in docs/deepspec.md: pieces of the files of an installed package, some files kept for judging.

    python docs/examples/domain_prompts.py torch build/domain "*.h"
"""

import hashlib
import importlib.util
import json
import random
import sys
from pathlib import Path

HELD_OUT_ONE_IN = 8
PIECES_PER_FILE = 4
HELD_OUT_PROMPTS = 40
TRAIN_PROMPTS = 800


def pieces(text: str, draw: random.Random) -> list[str]:
    """Stretches of 400 to 900 characters that begin and end with a line."""
    lines = text.splitlines(keepends=True)
    found = []
    for _ in range(PIECES_PER_FILE):
        start = draw.randrange(max(1, len(lines) - 10))
        piece = "".join(lines[start : start + 40])[: draw.randrange(400, 900)]
        found.append(piece[: piece.rfind("\n") + 1])
    return [piece for piece in found if len(piece) > 200]


def main() -> None:
    package, out = sys.argv[1], Path(sys.argv[2])
    pattern = sys.argv[3] if len(sys.argv) > 3 else "*.py"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{package} is not installed")
    sets: dict[bool, list[str]] = {False: [], True: []}
    draw = random.Random(0)
    for path in sorted(Path(spec.submodule_search_locations[0]).rglob(pattern)):
        if "tests" not in path.parts:
            held_out = hashlib.sha256(path.name.encode()).digest()[0] % HELD_OUT_ONE_IN == 0
            sets[held_out] += pieces(path.read_text(encoding="utf-8", errors="replace"), draw)
    out.mkdir(parents=True, exist_ok=True)
    for name, most, found in (("train", TRAIN_PROMPTS, sets[False]), ("held_out", HELD_OUT_PROMPTS, sets[True])):
        texts = draw.sample(found, min(most, len(found)))
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        print(f"{len(texts)} prompts in {out / f'{name}.jsonl'}")


if __name__ == "__main__":
    main()
