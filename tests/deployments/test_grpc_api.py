"""The public gRPC service and its client over a real connection; behind them a service without models."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager

import grpc
import grpc.aio
import pytest

from dspark.client import AsyncClient, Client
from dspark.errors import (
    DeadlineExceeded,
    DSparkError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ReplicaUnavailable,
    RequestAborted,
    SpeedUnavailable,
    TargetUnavailable,
)
from dspark.wire.pb import generation_pb2 as pb
from dspark.wire.pb import generation_pb2_grpc as rpc
from tests.deployments.serve_like import ServeLikeChannel, Servicer, serving
from tests.serving.echo_service import EchoService

PROMPT = "one two three, stop here."


@pytest.fixture
async def service() -> EchoService:
    return EchoService()


@pytest.fixture
async def client(service: EchoService) -> AsyncIterator[AsyncClient]:
    async with serving(service) as address, AsyncClient(address) as client:
        yield client


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("not within 2 s")


async def test_a_stream_gives_the_same_as_the_whole_answer(client: AsyncClient) -> None:
    whole = await client.generate(PROMPT, max_tokens=10, seed=5, temperature=0.0)
    chunks = [chunk async for chunk in client.stream(PROMPT, max_tokens=10, seed=5, temperature=0.0)]
    assert "".join(chunk.text for chunk in chunks) == whole.text != ""
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + [whole.finish_reason]
    assert (chunks[-1].usage, chunks[-1].seed) == (whole.usage, 5)
    assert whole.usage.completion_tokens == 10


async def test_a_prompt_of_ids_is_the_prompt_of_its_text(client: AsyncClient, service: EchoService) -> None:
    answers = [await client.generate(prompt, max_tokens=6, seed=1) for prompt in (PROMPT, service.encode(PROMPT))]
    assert answers[0].token_ids == answers[1].token_ids


async def test_options_arrive_as_they_were_given(client: AsyncClient, service: EchoService) -> None:
    options = {"top_k": 7, "top_p": 0.5, "min_p": 0.25, "temperature": 0.5, "seed": 3, "stop": ["zz"], "request_id": "mine"}
    await client.generate(PROMPT, max_tokens=3, ignore_eos=True, speculation=False, timeout_s=9.0, **options)
    (request,) = service.requests
    sampling = request.sampling
    assert (sampling.top_k, sampling.top_p, sampling.min_p, sampling.temperature, sampling.seed) == (7, 0.5, 0.25, 0.5, 3)
    assert (request.stop, request.request_id, request.ignore_eos) == (("zz",), "mine", True)
    assert (request.speculation_enabled, request.timeout_s, request.max_tokens) == (False, 9.0, 3)


async def test_what_is_not_said_is_the_default_and_a_seed_is_drawn(client: AsyncClient, service: EchoService) -> None:
    first, second = [await client.generate(PROMPT, max_tokens=2) for _ in range(2)]
    assert first.seed != second.seed
    request = service.requests[0]
    assert (request.sampling.temperature, request.speculation_enabled, request.timeout_s) == (1.0, True, None)


@pytest.mark.parametrize(
    ("said", "enabled", "drafter"),
    [
        (None, True, None),
        (pb.Speculation(drafter="code"), True, "code"),
        (pb.Speculation(enabled=True), True, None),
        (pb.Speculation(max_nodes=4), True, None),
        (pb.Speculation(max_nodes=0), False, None),
        (pb.Speculation(min_tokens_per_second=5.0), True, None),
        (pb.Speculation(enabled=False, max_nodes=4), False, None),
        (pb.Speculation(enabled=False, drafter="code"), False, "code"),
        (pb.Speculation(enabled=False), False, None),
        (pb.Speculation.FromString(b""), False, None),  # how a client of the first version says false
        (pb.Speculation.FromString(b"\x08\x01"), True, None),  # and true
    ],
)
async def test_speculation_is_off_only_where_a_client_says_so(
    service: EchoService, said: pb.Speculation | None, enabled: bool, drafter: str | None
) -> None:
    async with serving(service) as address, grpc.aio.insecure_channel(address) as channel:
        stub = rpc.GenerationStub(channel)  # type: ignore[no-untyped-call]
        answer = await stub.Generate(pb.GenerateRequest(text=PROMPT, max_tokens=2, speculation=said))
    (request,) = service.requests
    assert (request.speculation_enabled, request.drafter) == (enabled, drafter)
    assert answer.usage.drafter == ((drafter or "general") if enabled else "")


async def test_the_client_names_a_drafter_and_hears_who_served(client: AsyncClient, service: EchoService) -> None:
    named = await client.generate(PROMPT, max_tokens=2, drafter="code")
    plain = await client.generate(PROMPT, max_tokens=2, drafter="code", speculation=False)
    assert (named.usage.drafter, plain.usage.drafter) == ("code", None)
    assert [request.drafter for request in service.requests] == ["code", "code"]


async def test_wishes_for_speed_arrive_and_are_reported(client: AsyncClient, service: EchoService) -> None:
    wishes = {"max_nodes": 6, "min_tokens_per_second": 12.5, "priority": -5}
    answer = await client.generate(PROMPT, max_tokens=2, **wishes)
    plain = await client.generate(PROMPT, max_tokens=2, max_nodes=0)
    unasked = await client.generate(PROMPT, max_tokens=2)
    first, second, third = service.requests
    assert (first.speculation_enabled, first.max_nodes, first.min_tokens_per_second, first.priority) == (True, 6, 12.5, -5)
    assert (second.speculation_enabled, third.speculation_enabled) == (False, True)
    told = [(a.usage.max_nodes, a.usage.min_tokens_per_second, a.usage.priority) for a in (answer, plain, unasked)]
    assert told == [(6, 12.5, -5), (0, None, 0), (None, None, 0)]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"drafter": "prose"}, InvalidRequest, "speculation.drafter must be one of 'code', 'general', not 'prose'"),
        ({"drafter": "prose", "speculation": False}, InvalidRequest, "speculation.drafter must be one of"),
        ({"drafter": 5}, InvalidRequest, "cannot be sent"),
        ({"max_nodes": 257}, InvalidRequest, "speculation.max_nodes must be an integer from 0 to 256"),
        ({"max_nodes": -1, "speculation": False}, InvalidRequest, "speculation.max_nodes must be"),
        ({"min_tokens_per_second": 0.0}, InvalidRequest, "speculation.min_tokens_per_second must be a number above 0"),
        ({"min_tokens_per_second": float("nan")}, InvalidRequest, "speculation.min_tokens_per_second must be"),
        ({"priority": 101}, InvalidRequest, "priority must be an integer from -100 to 100"),
        ({"priority": "high"}, InvalidRequest, "cannot be sent"),
        ({"temperature": float("nan")}, InvalidRequest, "temperature must be a number from 0 to 2"),
        ({"top_p": 0.0}, InvalidRequest, "top_p must be a number above 0"),
        ({"max_tokens": 0}, InvalidRequest, "max_tokens must be an integer from 1"),
        ({"seed": -1}, InvalidRequest, "seed must be an integer from 0"),
        ({"stop": [""]}, InvalidRequest, "stop must have strings of 1 to"),
        ({"request_id": "../x"}, InvalidRequest, "request_id must be 1 to 64"),
        ({"timeout_s": -1.0}, InvalidRequest, "timeout"),
        ({"timeout_s": float("inf")}, InvalidRequest, "timeout"),
        ({"model": "../other"}, ModelNotFound, "does not exist"),
        ({"seed": 2**70}, InvalidRequest, "cannot be sent"),
        ({"max_tokens": "3"}, InvalidRequest, "cannot be sent"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_bad_option_is_an_error_of_its_kind(
    service: EchoService, options: dict[str, object], kind: type[DSparkError], words: str, streamed: bool
) -> None:
    with pytest.raises(kind, match=words):
        await status_of(service, PROMPT, options, streamed)
    assert service.requests == []


@pytest.mark.parametrize("prompt", ["", [], [-1], [10**6]])
async def test_a_bad_prompt_is_an_invalid_request(service: EchoService, prompt: str | list[int]) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        await status_of(service, prompt, {}, streamed=False)


async def test_a_request_over_the_size_limit_is_refused(service: EchoService) -> None:
    with pytest.raises(Overloaded, match="more than 4096 bytes"):
        await status_of(service, "x" * 5000, {}, streamed=False)


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (TargetUnavailable("10.0.0.7:4711 is gone"), ReplicaUnavailable, "no replica can take the request"),
        (Overloaded("full"), Overloaded, "full"),
        (SpeedUnavailable("one more would break a promise"), Overloaded, "one more would break a promise"),
        (DeadlineExceeded("over"), DeadlineExceeded, "over"),
        (RuntimeError("secret /etc/path"), DSparkError, "internal error; request id mine"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failure_of_the_service_has_its_code_and_no_secrets(
    service: EchoService, failure: Exception, kind: type[DSparkError], words: str, streamed: bool
) -> None:
    service.pause_after, service.failure = 1, failure
    with pytest.raises(kind, match=words) as caught:
        await status_of(service, PROMPT, {"request_id": "mine", "max_tokens": 30}, streamed)
    assert "secret" not in str(caught.value)
    assert "4711" not in str(caught.value)
    assert service.open_streams == 0


async def test_leaving_a_stream_early_ends_its_work(client: AsyncClient, service: EchoService) -> None:
    service.pause_after = 2
    async with aclosing(client.stream(PROMPT, max_tokens=200)) as chunks:
        await anext(chunks)
        assert service.open_streams == 1
    await eventually(lambda: service.open_streams == 0)


async def test_abort_ends_a_stream_by_its_id(client: AsyncClient, service: EchoService) -> None:
    service.pause_after = 2
    async with aclosing(client.stream(PROMPT, max_tokens=200, request_id="long-one")) as chunks:
        await anext(chunks)
        assert await client.abort("long-one")
        service.go_on.set()
        with pytest.raises(RequestAborted):
            await asyncio.wait_for(rest_of(chunks), 5.0)
    assert not await client.abort("nobody")
    with pytest.raises(InvalidRequest):
        await client.abort("no such ../ id")


async def test_the_model_is_listed(client: AsyncClient, service: EchoService) -> None:
    (model,) = await client.models()
    assert (model.name, model.max_length, model.vocab_size) == (service.card.name, service.max_length, service.card.vocab_size)


async def test_a_service_that_is_not_there_is_unavailable() -> None:
    async with serving(EchoService()) as address:
        pass
    async with AsyncClient(address) as client:
        with pytest.raises(ReplicaUnavailable):
            await client.models()


async def test_the_blocking_client_does_the_same(service: EchoService) -> None:
    async with serving(service) as address:
        await asyncio.to_thread(use_blocking_client, address, service)
        await eventually(lambda: service.open_streams == 0)
    assert service.open_streams == 0
    assert [request.max_tokens for request in service.requests] == [10, 10, 200], "what is refused never gets here"


def use_blocking_client(address: str, service: EchoService) -> None:
    with Client(address) as client:
        whole = client.generate(PROMPT, max_tokens=10, seed=5)
        assert "".join(chunk.text for chunk in client.stream(PROMPT, max_tokens=10, seed=5)) == whole.text
        assert [model.name for model in client.models()] == [service.card.name]
        assert not client.abort("nobody")
        with pytest.raises(ModelNotFound):
            client.generate(PROMPT, model="other")
        with pytest.raises(InvalidRequest), left_early(client.stream(PROMPT, max_tokens=0)) as chunks:
            next(chunks)
        with left_early(client.stream(PROMPT, max_tokens=200)) as chunks:
            next(chunks)


@contextmanager
def left_early(chunks: Iterator[object]) -> Iterator[Iterator[object]]:
    try:
        yield chunks
    finally:
        chunks.close()  # type: ignore[attr-defined]


async def rest_of(chunks: AsyncIterator[object]) -> list[object]:
    return [chunk async for chunk in chunks]


async def status_of(service: EchoService, prompt: str | list[int], options: dict[str, object], streamed: bool) -> None:
    """Send through the real client, with the real service's methods behind a channel that keeps Serve's way with statuses."""
    async with AsyncClient(channel=ServeLikeChannel(Servicer(service))) as client:  # type: ignore[arg-type]
        if streamed:
            async for _ in client.stream(prompt, **options):  # type: ignore[arg-type]
                pass
        else:
            await client.generate(prompt, **options)  # type: ignore[arg-type]
