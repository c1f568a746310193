"""Who may import whom, read from the source: the layers of the house, and the few rooms where a heavy library may stand.

An import below `if TYPE_CHECKING:` counts too: a type is knowledge.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: From the bottom up. A room imports rooms of its own line or of lines below; rooms split by `|` do not import each other.
LAYERS = """
types, errors
tree, session, messages, config, batching
devices, noise, sampling, acceptance, scheduling, ports
runtime
verifying | drafting | wire | fakes
routing | serving
local, config_file, engine, deepspec, bench, cli, client
deployments
"""

#: Room -> (layer, neighbourhood within the layer).
PLACES = {
    room.strip(): (layer, neighbours)
    for layer, line in enumerate(LAYERS.strip().splitlines())
    for neighbours, rooms in enumerate(line.split("|"))
    for room in rooms.split(",")
}

#: Stands apart: a recipe that builds the shipped weights. It may use the runtime; nobody imports it.
APART = {"demo"}

#: Library -> the only places that may import it.
ONLY_IN = {"ray": ("deployments", "dspark/deepspec/launcher.py")}
NEVER_IN = {"torch": ("dspark/scheduling", "dspark/session.py", "dspark/routing")}
STUBS = "dspark.wire.pb"
STUBS_ONLY_IN = ("dspark/wire", "dspark/client.py", "deployments/grpc_api.py")


def sources() -> list[str]:
    """Every module of both packages, as paths from the root."""
    paths = [path for package in ("dspark", "deployments") for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def imported_modules(text: str, module: str) -> Iterator[str]:
    """Absolute names of everything a module imports, wherever in the file; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """`dspark.wire.codec` -> `wire`; None for the package itself and for other libraries."""
    parts = module.split(".")
    if parts[0] == "deployments":
        return "deployments"
    return parts[1] if parts[0] == "dspark" and len(parts) > 1 else None


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_inside(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


def may_import(importer: str, imported: str) -> bool:
    """Both are rooms of the house."""
    if imported in APART or importer in APART:
        return importer == imported or (importer in APART and PLACES[imported][0] <= PLACES["runtime"][0])
    (layer, neighbours), (other_layer, other_neighbours) = PLACES[importer], PLACES[imported]
    return other_layer < layer or (other_layer == layer and other_neighbours == neighbours)


def violations(path: str, text: str) -> list[str]:
    """What a module imports although it must not, as sentences."""
    importer = room_of(module_of(path))
    found = []
    for name in imported_modules(text, module_of(path)):
        library, room = name.split(".")[0], room_of(name)
        if library in ONLY_IN and not is_inside(path, ONLY_IN[library]):
            found.append(f"{path} imports {name}; {library} belongs to {ONLY_IN[library]}")
        if library in NEVER_IN and is_inside(path, NEVER_IN[library]):
            found.append(f"{path} imports {name}; there is no {library} in this room")
        if (name == STUBS or name.startswith(f"{STUBS}.")) and not is_inside(path, STUBS_ONLY_IN):
            found.append(f"{path} imports {name}; generated stubs belong to {STUBS_ONLY_IN}")
        if importer and room in {*PLACES, *APART} and not may_import(importer, room):
            found.append(f"{path} imports {name}; {importer} stands below or beside {room}")
    return sorted(set(found))


@pytest.mark.parametrize("path", sources())
def test_every_module_has_its_place_and_imports_downwards_only(path: str) -> None:
    room = room_of(module_of(path))
    assert room is None or room in {*PLACES, *APART}, f"{path}: give the room {room!r} a layer in this test"
    assert violations(path, (ROOT / path).read_text()) == []


BAD = {
    "dspark/types.py": "from dspark.tree import CandidateTree",
    "dspark/tree.py": "def f():\n    from dspark.runtime import loading",
    "dspark/runtime/loading.py": "import dspark.demo.build",
    "dspark/verifying/verifier.py": "from dspark.drafting import drafter",
    "dspark/wire/codec.py": "from .. import fakes",
    "dspark/routing/loop.py": "import torch.nn",
    "dspark/scheduling/planner.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    "dspark/serving/openai.py": "from dspark.wire.pb import tensor_pb2",
    "dspark/engine.py": "import ray",
    "dspark/cli.py": "from deployments import app",
    "dspark/demo/build.py": "from dspark.verifying import verifier",
    "dspark/session.py": "from dspark.scheduling.planner import plan",
}


@pytest.mark.parametrize(("path", "text"), BAD.items(), ids=BAD.keys())
def test_a_forbidden_import_is_found(path: str, text: str) -> None:
    assert violations(path, text) != []


GOOD = {
    "dspark/engine.py": "import torch\nfrom dspark.routing.loop import run",
    "dspark/wire/codec.py": "from dspark.wire.pb import tensor_pb2\nfrom . import tensors",
    "deployments/app.py": "import ray\nfrom dspark.engine import Engine",
    "dspark/demo/build.py": "from dspark.demo import corpus\nfrom dspark.runtime.loading import load_tokenizer",
    "dspark/scheduling/planner.py": "from dspark.scheduling.curve import Curve\nfrom dspark.tree import CandidateTree",
}


@pytest.mark.parametrize(("path", "text"), GOOD.items(), ids=GOOD.keys())
def test_an_allowed_import_is_allowed(path: str, text: str) -> None:
    assert violations(path, text) == []
