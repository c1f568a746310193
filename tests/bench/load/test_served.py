"""A service under load over HTTP: a real server on loopback, with an echo behind it."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from deployments.http_api import build_http_app
from dspark.bench.load.plan import LoadPlan, Patience
from dspark.bench.load.results import read_report
from dspark.bench.load.served import Answered, ServedSystem, identity_of, window_of
from dspark.bench.load_commands import _ends_early
from dspark.cli import app
from dspark.config import LimitsConfig
from tests.serving.echo_service import EchoService

PLAN = LoadPlan(clients=(2,), seconds=0.2, max_tokens=30)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    service = EchoService(max_length=4096)
    app = build_http_app(lambda: service, LimitsConfig())
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http="httptools", ws="none", loop="asyncio"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = server.force_exit = True
        thread.join()


def system(url: str, speculate: bool, plan: LoadPlan = PLAN) -> ServedSystem:
    return ServedSystem("service", url, "echo/tiny", ["one two three, stop here."] * 8, plan, Patience(), speculate)


def test_a_turn_counts_what_the_service_says_of_its_answers(url: str) -> None:
    served = system(url, speculate=True)
    window = served.turn(2)
    assert window.seconds >= 0.2
    assert window.tokens / window.rounds == pytest.approx(3.0, rel=0.1), "blocks of three, the end of an answer may cut one"
    assert (window.drafted / window.rounds, window.selected / window.rounds) == (pytest.approx(4.0), pytest.approx(3.0))
    assert served.drafters == {"general"}
    assert len({number // 1_000_000 for number in window.requests}) == 2
    assert all(seen.tokens_per_second > 0 for seen in window.requests.values())


def test_plain_requests_ask_for_no_speculation_and_seeds_go_on_from_turn_to_turn(url: str) -> None:
    served = system(url, speculate=False)
    assert served.turn(1).selected == 0.0
    asked = served.num_asked[0]
    numbers = served.turn(1).requests
    assert min(numbers) >= asked
    assert served.drafters == set()


def test_with_tokens_a_turn_lasts_until_every_client_has_had_its_share(url: str) -> None:
    window = system(url, True, LoadPlan(clients=(2,), tokens=200, max_tokens=30)).turn(2)
    assert window.tokens >= 400


def test_a_service_that_refuses_is_told_of(url: str) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        system(url, True, LoadPlan(max_tokens=5000, seed=1)).turn(1)


def test_the_service_says_what_it_is(url: str) -> None:
    model, identity = identity_of(url)
    assert model == "echo/tiny"
    assert "echo/tiny of at most 4096 tokens" in identity
    assert "over HTTP" in identity


def test_the_command_measures_a_service_and_writes_what_it_found(url: str, tmp_path: Path) -> None:
    options = ["--clients", "1,2", "--turns", "1", "--seconds", "0.1", "--max-tokens", "20", "--name", "mine", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", "load", "--url", url, *options])
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path)
    assert report.policies == ("plain", "mine")
    assert report.costs is None
    assert "over HTTP; its drafters: general" in result.output
    assert report.of("mine")[1].verified_per_round == pytest.approx(3.0)
    assert report.of("mine")[1].rows_per_step is None


def test_the_first_interrupt_asks_for_an_end_and_a_later_one_is_one() -> None:
    now_s = 0.0
    patience = Patience(clock=lambda: now_s)
    with pytest.raises(KeyboardInterrupt), _ends_early(patience):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # at the same moment: one and the same
        assert patience.over
        now_s = 5.0
        signal.raise_signal(signal.SIGINT)


def test_a_request_that_lies_partly_in_the_window_counts_by_its_share() -> None:
    counts = {"rounds": 10, "drafted": 0, "selected": 20}
    answered = [Answered(0, n, start, start + 2.0, 40, counts) for n, start in enumerate((0.0, 2.0, 4.0, 9.0))]
    window = window_of(answered, 1.0, 5.0)
    assert (window.seconds, window.tokens, window.rounds, window.selected) == (4.0, 80.0, 20.0, 40.0)
    assert {number: seen.seconds for number, seen in window.requests.items()} == {0: 1.0, 1: 2.0, 2: 1.0}
    assert all(seen.tokens_per_second == 20.0 for seen in window.requests.values())
