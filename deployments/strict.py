"""Strict reading of configuration: duplicate and unknown keys are errors, which say where they stand and what may be meant.

Ray Serve's own schema takes unknown keys silently, so its files are walked here first. Knows pydantic models, not their meaning.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dspark.errors import ConfigError

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration."""

    location: Location
    text: str

    def __str__(self) -> str:
        return f"{dotted(self.location)}: {self.text}" if self.location else self.text


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed file and the line (counted from 1) on which each of its keys stands."""

    path: Path
    data: Any
    lines: dict[Location, int]

    def raise_problems(self, problems: list[Problem]) -> None:
        """Raise ConfigError with one `file:line: key: text` per problem; return if there is none."""
        if problems:
            raise ConfigError("\n".join(f"{self.path}:{self._line(problem.location)}: {problem}" for problem in problems))

    def _line(self, location: Location) -> int:
        """Of the key itself, or of the nearest one above it that is in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def dotted(location: Location) -> str:
    """`applications[0].args.target` for ("applications", 0, "args", "target")."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def read_yaml(path: Path) -> YamlFile:
    """One document of plain values. Raises ConfigError for tags, aliases, duplicate keys and bad syntax, with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8") from None
    return parse_yaml(path, text)


def parse_yaml(path: Path, text: str) -> YamlFile:
    """As `read_yaml`, for text that is already in memory; `path` is for messages."""
    try:
        _refuse_aliases(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = dict(_key_lines(path, root, ())) if root is not None else {}
        return YamlFile(path, yaml.safe_load(text), lines)
    except yaml.MarkedYAMLError as error:
        line = getattr(error.problem_mark, "line", 0) + 1
        raise ConfigError(f"{path}:{line}: {error.problem or error.context or 'not valid YAML'}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None


def unknown_keys(model: type[BaseModel], data: Any, location: Location = ()) -> Iterator[Problem]:
    """Every key of `data` that `model`, or a model inside it, does not have. Free-form dictionaries are left alone."""
    if not isinstance(data, dict):
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, value in data.items():
        here = (*location, key)
        if key in fields:
            yield from _inside(fields[key].annotation, value, here)
        else:
            yield Problem(here, f"unknown key{did_you_mean(str(key), fields)}")


def did_you_mean(word: str, known: Any) -> str:
    """`; did you mean X?` for the nearest of the known words, or nothing."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def problems_of(error: ValidationError, location: Location = ()) -> list[Problem]:
    """Pydantic's complaints without the values they are about: a value may be a secret."""
    return [
        Problem((*location, *item["loc"]), item["msg"].removeprefix("Value error, "))
        for item in error.errors(include_url=False, include_input=False)
        if item["type"] != "extra_forbidden"  # found by unknown_keys, with a suggestion
    ]


def _inside(annotation: Any, value: Any, location: Location) -> Iterator[Problem]:
    """Unknown keys of a field's value: through Optional, unions, lists and mappings down to the models."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from unknown_keys(annotation, value, location)
    elif get_origin(annotation) in (Union, types.UnionType):
        models = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(models) == 1:
            yield from unknown_keys(models[0], value, location)
    elif get_origin(annotation) is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _inside(get_args(annotation)[0], item, (*location, index))
    elif get_origin(annotation) is dict and get_args(annotation) and isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(get_args(annotation)[1], item, (*location, key))


def _refuse_aliases(path: Path, text: str) -> None:
    """A few nested aliases can unfold to billions of values, and nothing here needs one."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = getattr(event.start_mark, "line", 0) + 1
            raise ConfigError(f"{path}:{line}: aliases (*{event.anchor}) are not used here")


def _key_lines(path: Path, node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    """Where each key stands. Raises ConfigError for a key that stands twice: YAML would silently take the last."""
    yield location, node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _key_lines(path, item, (*location, index))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(f"{path}:{line}: {dotted((*location, key.value))}: this key stands twice")
            seen.add(key.value)
            yield from _key_lines(path, value, (*location, key.value))
            yield (*location, key.value), line
