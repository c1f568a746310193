"""The fields of OpenAI's API and its usual extensions that are not offered here, and how a wrong field is answered.

Three kinds: ignored (they change nothing in an answer), unsupported (refused, unless they hold the value that asks for
nothing), unknown (refused, with the nearest known name). Nothing that a client asked for is dropped in silence.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dspark.errors import InvalidRequest, UnsupportedFeature
from dspark.serving.validation import shown

IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

#: Field -> the values, besides null, that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}

#: The same for one chat message: what clients send back of an earlier answer.
UNSUPPORTED_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}

_WORDS = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "string_type": "a string",
}


def offered_fields(body: dict[str, Any], offered: Iterable[str], unsupported: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """`body` without ignored and neutral fields. Raises UnsupportedFeature or, for an unknown name, InvalidRequest."""
    names = frozenset(offered)
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if name in names:
            kept[name] = value
        elif name in unsupported:
            _check_neutral(name, value, unsupported[name])
        elif name not in IGNORED:
            raise InvalidRequest(_unknown(name, names, unsupported.keys() | IGNORED), shown(name))
    return kept


def wrong_field(error: ValidationError) -> InvalidRequest:
    """pydantic's findings as one error about the first field at fault; the client's value is not repeated."""
    findings = error.errors(include_url=False, include_context=True, include_input=False)
    field = _path(findings[0])
    words = dict.fromkeys(_word(finding) for finding in findings if _path(finding) == field)
    if findings[0]["type"] == "missing":
        return InvalidRequest(f"{field} is required", field)
    if findings[0]["type"] == "extra_forbidden":
        return InvalidRequest(f"{field} is not a known field", field)
    return InvalidRequest(f"{field} must be {' or '.join(words)}", field)


def _check_neutral(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    # 0 == False to Python; a client that says one of them means a different thing.
    if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
        return
    raise UnsupportedFeature(f"{name} is not supported by this service", name)


def _unknown(name: str, offered: Iterable[str], others: Iterable[str]) -> str:
    nearest = [match for known in (offered, others) for match in difflib.get_close_matches(name[:64], sorted(known), n=1)]
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{shown(name)} is not a known field{hint}"


def _path(finding: ErrorDetails) -> str:
    """Dotted place of a finding; what pydantic adds for the members of a union is left out."""
    names = [str(part) for part in finding["loc"] if isinstance(part, int) or part.isidentifier()]
    return ".".join(name for name in names if name not in ("str", "int", "float", "bool"))


def _word(finding: ErrorDetails) -> str:
    if finding["type"] == "literal_error":
        return str(finding["ctx"]["expected"])
    return _WORDS.get(finding["type"], "valid")
