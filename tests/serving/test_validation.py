from dataclasses import replace
from typing import Any

import pytest

from dspark.config import LimitsConfig
from dspark.errors import InvalidRequest, ModelNotFound
from dspark.serving.validation import RawOptions, check_model, generation_requests, split_prompts
from dspark.types import MAX_SEED, ModelCard

CARD = ModelCard("m", vocab_size=300, max_length=50, eos_token_ids=(0,), model_fingerprint="f", tokenizer_fingerprint="t")
LIMITS = LimitsConfig(max_choices=4, max_prompts=3)
RAW = RawOptions(prompts=((1, 2, 3),))


def encode(text: str) -> list[int]:
    return list(text.encode())


def requests_of(**changes: Any) -> list[Any]:
    return generation_requests(replace(RAW, **changes), CARD, LIMITS, encode, drafters=("general", "code"))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [float("nan"), float("inf"), float("-inf"), -0.1, 2.1, 1e308, True, "1"]),
        ("top_p", [0, 0.0, 1.1, -1, float("nan"), False]),
        ("top_k", [-2, 1.0, True]),
        ("min_p", [-0.1, 1.1, float("nan")]),
        ("seed", [-1, 2**63, 2**70, 1e23, True, "a"]),
        ("n", [0, -1, 5, 10**9, True, 1.0]),
        ("max_tokens", [0, -1, 51, 2**31, 2**63, True]),
        ("ignore_eos", [1, "true"]),
        ("priority", [-101, 101, 1.0, True, "0", 2**63]),
        ("timeout_s", [0, -1, float("nan"), float("inf"), True]),
        ("request_id", ["", "a" * 65, "a b", "a\r\nb", "<script>", "é", "a\n"]),
        ("stop", [("",), ("a",) * 5, ("x" * 1025,), ("é" * 513,), ("\ud800",), (None,)]),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_its_name(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequest) as caught:
            requests_of(**{field: value})
        assert caught.value.field == field, value
        assert field.removesuffix("_s") in caught.value.message


def test_a_drafter_is_one_of_the_services_own() -> None:
    assert [requests_of(drafter=name)[0].drafter for name in (None, "code")] == [None, "code"]
    for wrong in ("Code", "", "code ", 1, True, ["code"]):
        with pytest.raises(InvalidRequest, match=r"^speculation\.drafter must be one of 'code', 'general'") as caught:
            requests_of(drafter=wrong)
        assert caught.value.field == "speculation.drafter"


@pytest.mark.parametrize(
    ("option", "values", "words"),
    [
        ("max_nodes", [-1, 257, 4.0, True, "4", 2**31], "an integer from 0 to 256"),
        ("min_tokens_per_second", [0, 0.0, -1, 10_000.1, float("nan"), float("inf"), True, "9"], "a number above 0 and at most 10000"),
        ("speculation_enabled", [0, "yes"], "true or false"),
    ],
)
def test_a_wrong_option_of_speculation_is_refused_by_its_name_in_the_request(option: str, values: list[Any], words: str) -> None:
    name = "speculation." + option.removeprefix("speculation_")
    for value in values:
        for enabled in (True, False):
            with pytest.raises(InvalidRequest, match=rf"^{name} must be {words}") as caught:
                requests_of(**{"speculation_enabled": enabled, option: value})
            assert caught.value.field == name, value


def test_the_bounds_of_speed_and_priority_are_served() -> None:
    for low in (True, False):
        speed = 1e-3 if low else 10_000
        (request,) = requests_of(max_nodes=1 if low else 256, min_tokens_per_second=speed, priority=-100 if low else 100)
        assert (request.max_nodes, request.priority) == ((1, -100) if low else (256, 100))
        assert request.min_tokens_per_second == speed
        assert isinstance(request.min_tokens_per_second, float)


def test_what_is_not_said_of_speed_and_priority_is_none_and_0() -> None:
    (request,) = requests_of()
    assert (request.speculation_enabled, request.max_nodes, request.min_tokens_per_second, request.priority) == (True, None, None, 0)


@pytest.mark.parametrize("said", [{"speculation_enabled": False}, {"max_nodes": 0}, {"speculation_enabled": False, "max_nodes": 8}])
def test_no_speculation_and_no_candidates_are_the_same_wish(said: dict[str, Any]) -> None:
    (request,) = requests_of(min_tokens_per_second=5.0, **said)
    assert (request.speculation_enabled, request.max_nodes, request.min_tokens_per_second) == (False, 0, 5.0)


def test_a_service_without_drafters_has_no_names_to_offer() -> None:
    with pytest.raises(InvalidRequest, match=r"must be left out, as this service has no drafters, not 'default'"):
        generation_requests(replace(RAW, drafter="default"), CARD, LIMITS, encode, drafters=())


@pytest.mark.parametrize(
    "prompt", [(), (-1,), (300,), (2**63,), (1.5,), (True,), (1, None), ("a",), tuple(range(50)), "", "\ud800", "a" * 50]
)
def test_a_prompt_that_cannot_be_served_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests_of(prompts=(prompt,))
    assert caught.value.field == "prompt"


def test_the_bounds_themselves_are_served() -> None:
    (request,) = requests_of(temperature=2, top_p=1, min_p=1.0, seed=MAX_SEED, top_k=299, max_tokens=47, stop=("x" * 1024,))
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.top_k) == (2.0, MAX_SEED, 299)
    assert isinstance(request.sampling.temperature, float)
    assert requests_of(temperature=0)[0].sampling.temperature == 0


@pytest.mark.parametrize("top_k", [-1, 0, 300, 10**9, None])
def test_top_k_of_nothing_or_of_all_tokens_is_off(top_k: int | None) -> None:
    assert requests_of(top_k=top_k)[0].sampling.top_k == 0


def test_choices_of_one_request_share_all_but_their_number_and_come_prompt_by_prompt() -> None:
    made = requests_of(prompts=((1,), "ab"), n=3)
    assert [(r.prompt_ids, r.sampling.choice) for r in made] == [((1,), c) for c in range(3)] + [((97, 98), c) for c in range(3)]
    assert len({r.request_id for r in made}) == 1
    assert len({r.sampling.seed for r in made}) == 1


def test_a_request_without_a_seed_gets_a_new_one_each_time() -> None:
    seeds = {requests_of()[0].sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_max_tokens_is_sixteen_or_what_is_left_where_it_is_not_said() -> None:
    assert requests_of()[0].max_tokens == 16
    assert requests_of(prompts=(tuple(range(40)),))[0].max_tokens == 10
    assert requests_of(default_max_tokens=None)[0].max_tokens == 47


def test_a_prompt_and_answer_too_long_together_are_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidRequest, match=r"48 .* 3 tokens, together 51; .* 50 tokens") as caught:
        requests_of(max_tokens=48, max_tokens_field="max_completion_tokens")
    assert caught.value.field == "max_completion_tokens"


def test_too_many_prompts_are_refused_before_any_is_encoded() -> None:
    def never(text: str) -> list[int]:
        raise AssertionError("encoded")

    with pytest.raises(InvalidRequest, match="1 to 3 prompts"):
        generation_requests(replace(RAW, prompts=("a",) * 4), CARD, LIMITS, never, drafters=())


def test_a_wrong_option_is_found_before_the_prompt_is_encoded() -> None:
    def never(text: str) -> list[int]:
        raise AssertionError("encoded")

    with pytest.raises(InvalidRequest, match="seed"):
        generation_requests(replace(RAW, prompts=("a",), seed=-1), CARD, LIMITS, never, drafters=())


@pytest.mark.parametrize(
    ("value", "prompts"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_all_four_forms_of_a_prompt_are_understood(value: Any, prompts: Any) -> None:
    assert split_prompts(value) == prompts


@pytest.mark.parametrize("value", [[], ["a", 1], [1, [2]], ["a", ["b"]], None, 5, {"a": 1}])
def test_anything_else_is_no_prompt(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        split_prompts(value)


def test_another_model_is_not_found_and_its_name_cannot_split_a_line() -> None:
    check_model("m", CARD)
    with pytest.raises(ModelNotFound) as caught:
        check_model("../x\r\n" + "y" * 10**6, CARD)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_a_text_that_can_never_fit_is_refused_before_it_is_tokenised() -> None:
    def never(text: str) -> list[int]:
        raise AssertionError("tokenised")

    with pytest.raises(InvalidRequest, match="50 tokens") as caught:
        generation_requests(RawOptions(prompts=("x" * 50_000,)), CARD, LIMITS, never, drafters=())
    assert caught.value.field == "prompt"
