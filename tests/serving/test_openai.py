from typing import Any

import pytest

from dspark.config import LimitsConfig
from dspark.errors import InvalidRequest, ModelNotFound, UnsupportedFeature
from dspark.serving.openai import Call, chat_call, completion_call
from tests.serving.echo_service import EchoService

SERVICE = EchoService()
LIMITS = LimitsConfig()


def completion(**fields: Any) -> Call:
    return completion_call({"model": "echo/tiny", "prompt": "hi", **fields}, SERVICE, LIMITS, request_id="r1")


def chat(**fields: Any) -> Call:
    body = {"model": "echo/tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
    return chat_call(body, SERVICE, LIMITS, request_id="r1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", 0),
        ("logprobs", 5),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("echo", True),
        ("suffix", "x"),
        ("best_of", 2),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -1),
        ("repetition_penalty", 1.1),
        ("presence_penalty", False),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("functions", [{}]),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("min_tokens", 1),
        ("stop_token_ids", [1]),
        ("chat_template", "{{ x }}"),
        ("guided_regex", "(a+)+b"),
    ],
)
def test_a_known_feature_that_is_not_offered_is_refused_by_name(field: str, value: Any) -> None:
    for call in (completion, chat):
        with pytest.raises(UnsupportedFeature) as caught:
            call(**{field: value})
        assert caught.value.field == field
        assert field in caught.value.message


def test_values_that_ask_for_nothing_and_fields_that_change_nothing_are_accepted() -> None:
    neutral = {
        "logprobs": None,
        "echo": False,
        "suffix": None,
        "best_of": 1,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "stop_token_ids": None,
    }
    ignored = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s"}
    plain = completion(seed=1)
    assert completion(seed=1, **neutral, **ignored) == plain


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n", "3", "an integer"),
        ("n", True, "an integer"),
        ("n", 1.0, "an integer"),
        ("seed", "a", "an integer"),
        ("temperature", "inf", "a number"),
        ("temperature", False, "a number"),
        ("stream", 1, "true or false"),
        ("stop", 5, "a string or a list"),
        ("stop", ["a", None], "a string"),
        ("speculation", True, "an object"),
        ("speculation", {"enabled": 1}, "true or false"),
        ("speculation", {"drafter": 1}, "a string"),
        ("speculation", {"max_nodes": "4"}, "an integer"),
        ("speculation", {"max_nodes": True}, "an integer"),
        ("speculation", {"min_tokens_per_second": "fast"}, "a number"),
        ("priority", "high", "an integer"),
        ("priority", 0.5, "an integer"),
        ("speculation", {"drafter": ["code"]}, "a string"),
        ("stream_options", {"include_usage": "yes"}, "true or false"),
        ("prompt", None, "a string or a list"),
        ("model", 5, "a string"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(field: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"must be .*{words}") as caught:
        completion(**{field: value})
    assert str(caught.value.field).split(".")[0] == field


@pytest.mark.parametrize(
    ("field", "hint"), [("tempratur", "temperature"), ("max_token", "max_tokens"), ("logprob", "logprobs"), ("zzzzzz", None)]
)
def test_an_unknown_field_is_refused_with_the_nearest_known_name(field: str, hint: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**{field: 1})
    assert (f"did you mean {hint}?" in caught.value.message) if hint else ("did you mean" not in caught.value.message)


def test_an_unknown_field_is_repeated_only_in_part() -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**{"x\r\n" + "y" * 10**6: 1})
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message


def test_an_unknown_field_inside_an_object_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(speculation={"enable": True})
    assert caught.value.field == "speculation.enable"


def test_required_fields_are_required() -> None:
    for body, field in [({"prompt": "a"}, "model"), ({"model": "echo/tiny"}, "prompt")]:
        with pytest.raises(InvalidRequest, match="is required") as caught:
            completion_call(body, SERVICE, LIMITS)
        assert caught.value.field == field


def test_another_model_is_not_found() -> None:
    for call in (completion, chat):
        with pytest.raises(ModelNotFound):
            call(model="other")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hi",
        [5],
        [{}],
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "root", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "x", "colour": 1}],
    ],
)
def test_messages_that_are_no_conversation_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=messages)
    assert str(caught.value.field).startswith("messages")


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, {"type": "input_audio"}, {}]
)
def test_content_other_than_text_is_an_unsupported_feature(part: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
    assert caught.value.field == "messages.0.content.1"


def test_text_parts_are_joined_and_a_developer_speaks_as_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "assistant", "content": "c", "refusal": None, "tool_calls": []}]
    prompt_ids = chat(messages=messages).requests[0].prompt_ids
    assert SERVICE.tokenizer.decode(list(prompt_ids)) == "system: ab\nassistant: c\n"


def test_text_that_looks_like_a_special_token_stays_text() -> None:
    assert 0 not in completion(prompt="a<|endoftext|>b").requests[0].prompt_ids


def test_a_chat_gets_the_rest_of_the_context_and_a_completion_sixteen_tokens() -> None:
    request = chat().requests[0]
    assert request.max_tokens == SERVICE.max_length - len(request.prompt_ids)
    assert completion().requests[0].max_tokens == 16


def test_both_names_of_max_tokens_work_in_a_chat_but_not_together() -> None:
    assert chat(max_tokens=3).requests[0].max_tokens == chat(max_completion_tokens=3).requests[0].max_tokens == 3
    with pytest.raises(InvalidRequest):
        chat(max_tokens=3, max_completion_tokens=3)
    with pytest.raises(InvalidRequest) as caught:
        chat(max_completion_tokens=0)
    assert caught.value.field == "max_completion_tokens"
    with pytest.raises(InvalidRequest, match="did you mean max_tokens"):
        completion(max_completion_tokens=3)


def test_options_arrive_in_the_request() -> None:
    call = completion(
        top_k=5, min_p=0.1, top_p=0.9, temperature=0, seed=7, ignore_eos=True, stop="x", speculation={"enabled": False}
    )
    request = call.requests[0]
    assert (request.sampling.top_k, request.sampling.min_p, request.sampling.top_p) == (5, 0.1, 0.9)
    assert (request.sampling.temperature, request.sampling.seed) == (0.0, 7)
    assert (request.ignore_eos, request.stop, request.speculation_enabled, request.request_id) == (True, ("x",), False, "r1")


def test_the_wishes_for_speed_arrive_in_the_requests_of_every_choice() -> None:
    for call in (completion, chat):
        made = call(n=2, priority=-7, speculation={"max_nodes": 6, "min_tokens_per_second": 40, "drafter": "code"}).requests
        assert [(r.max_nodes, r.min_tokens_per_second, r.priority, r.drafter) for r in made] == [(6, 40.0, -7, "code")] * 2
        assert all(r.speculation_enabled for r in made)


def test_speculation_without_candidates_is_off() -> None:
    (request,) = completion(speculation={"max_nodes": 0}).requests
    assert (request.speculation_enabled, request.max_nodes) == (False, 0)


@pytest.mark.parametrize(
    ("speculation", "field"),
    [
        ({"max_nodes": 257}, "speculation.max_nodes"),
        ({"min_tokens_per_second": 0}, "speculation.min_tokens_per_second"),
        ({"max_node": 4}, "speculation.max_node"),
        ({"priority": 1}, "speculation.priority"),
    ],
)
def test_a_wrong_option_of_speculation_is_named_with_its_object(speculation: dict[str, Any], field: str) -> None:
    for call in (completion, chat):
        with pytest.raises(InvalidRequest) as caught:
            call(speculation=speculation)
        assert caught.value.field == field
        assert caught.value.message.startswith(field)


def test_stream_options_need_a_stream() -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(stream_options={"include_usage": True})
    assert caught.value.field == "stream_options"
