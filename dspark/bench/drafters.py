"""Which drafters a measurement is about, as a command line says it: kinds of this project with the models that ship,
or checkpoints by name.

lookup,language_model,block
lookup,mine=block:build/mine,theirs=eagle:build/theirs
"""

from collections.abc import Mapping
from typing import get_args

from dspark.config import DRAFTER_NAME, MODEL_KINDS, NO_DRAFTER, SHIPPED_DRAFTERS, DrafterConfig
from dspark.errors import ConfigError

KINDS = tuple(kind for kind in get_args(DrafterConfig.model_fields["kind"].annotation) if kind != "none")
READY_KINDS = ("lookup", *SHIPPED_DRAFTERS)
"""Kinds that need no checkpoint of the user's."""
DEFAULT_DRAFTERS = ",".join(READY_KINDS)


def drafter_argument(text: str, device: str = "cpu") -> tuple[str, DrafterConfig]:
    """`code=block:build/code` as name and configuration. Raises ConfigError."""
    name, equals, rest = text.partition("=")
    kind, _, model = rest.partition(":")
    if not (name and equals) or kind not in KINDS or (kind != "lookup" and not model):
        raise ConfigError(f"{text!r}: write it as NAME=KIND:CHECKPOINT, KIND one of {', '.join(KINDS)}", "drafters")
    return name, DrafterConfig.model_validate({"kind": kind, "device": device} | ({"model": model} if model else {}))


def listed_drafters(text: str, depth: int, device: str = "cpu") -> dict[str, DrafterConfig]:
    """Comma-separated; a kind alone stands for the shipped drafter of that kind. All draft chains of `depth`. Raises ConfigError."""
    found: dict[str, DrafterConfig] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, config = (
            (part, DrafterConfig.model_validate({"kind": part, "device": device}))
            if part in READY_KINDS
            else drafter_argument(part, device)
        )
        if name in found or name == NO_DRAFTER or not DRAFTER_NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name for a drafter here, or stands twice", "drafters")
        found[name] = config.model_copy(update={"max_depth": depth, "max_nodes": depth, "max_width": 1})
    if not found:
        raise ConfigError(f"name at least one drafter: {', '.join(READY_KINDS)} or NAME=KIND:CHECKPOINT", "drafters")
    return found


def as_trees(drafters: Mapping[str, DrafterConfig], nodes: int, width: int, with_lookup: bool = False) -> dict[str, DrafterConfig]:
    """The same drafters with trees of `nodes` candidates, as chains if that is 0, and with lookup beside every one that has a model.

    Raises ConfigError if lookup is wanted and none has one.
    """
    if with_lookup and not any(config.kind in MODEL_KINDS for config in drafters.values()):
        raise ConfigError("lookup goes with a drafter that has a model", "with_lookup")
    limits = {"max_nodes": nodes, "max_width": width} if nodes else {}
    return {
        name: config.model_copy(update=limits | {"with_lookup": with_lookup and config.kind in MODEL_KINDS})
        for name, config in drafters.items()
    }
