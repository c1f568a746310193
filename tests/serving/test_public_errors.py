import pytest

from dspark import errors
from dspark.serving.public_errors import public_error

SECRET = "10.0.0.7:5555 /srv/models"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        errors.DSparkError(SECRET),
        errors.StaleRound(SECRET),
        errors.ModelLoadError(SECRET),
        errors.TargetUnavailable(SECRET),
        errors.OutOfBlocks(SECRET),
    ],
)
def test_the_services_own_troubles_are_not_told_in_detail(error: Exception) -> None:
    shown = public_error(error, "req-1")
    assert SECRET not in str(shown.body())
    assert shown.http_status >= 500


def test_a_bug_tells_the_request_id_so_that_the_log_can_be_searched() -> None:
    assert "req-1" in public_error(KeyError("x"), "req-1").message


def test_the_clients_own_mistake_is_told_in_full_with_its_field() -> None:
    shown = public_error(errors.UnsupportedFeature("logprobs is not supported", "logprobs"), "req-1")
    expected = {
        "message": "logprobs is not supported",
        "type": "invalid_request_error",
        "param": "logprobs",
        "code": "unsupported_feature",
    }
    assert (shown.http_status, shown.grpc_code, shown.body()) == (400, "INVALID_ARGUMENT", {"error": expected})


def test_a_speed_that_cannot_be_promised_looks_like_a_full_queue_and_says_why() -> None:
    shown = public_error(errors.SpeedUnavailable("about 40 are left"), "req-1")
    assert (shown.http_status, shown.grpc_code, shown.kind) == (429, "RESOURCE_EXHAUSTED", "rate_limit_error")
    assert (shown.code, shown.message) == ("speed_unavailable", "about 40 are left")


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (errors.Overloaded("full"), True),
        (errors.SpeedUnavailable("too slow"), True),
        (errors.TargetUnavailable("x"), True),
        (errors.OutOfBlocks("x"), True),
        (errors.DeadlineExceeded("late"), False),
        (errors.InvalidRequest("bad"), False),
        (ValueError("bug"), False),
    ],
)
def test_only_what_passes_by_itself_is_worth_a_retry(error: Exception, retryable: bool) -> None:
    assert public_error(error, "req-1").retryable is retryable
