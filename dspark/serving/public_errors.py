"""What a client may read of an error: status, a short text, and whether to try again. Used by every ingress.

Errors of the client's own making are told in full; of the service's troubles only the kind is told, because their messages
may name hosts, files or other requests.
"""

from dataclasses import dataclass
from typing import Any

from dspark.errors import (
    RETRYABLE,
    ClientTooSlow,
    DeadlineExceeded,
    DSparkError,
    InvalidRequest,
    ModelNotFound,
    OutOfBlocks,
    Overloaded,
    ReplicaUnavailable,
    RequestAborted,
    RequestTooLarge,
    SpeedUnavailable,
    TargetUnavailable,
    UnsupportedFeature,
    status_codes,
)

RETRY_AFTER_S = 1
"""What a client that may come again is told to wait."""

#: First match along the class's bases wins.
_CODES: dict[type[DSparkError], str] = {
    UnsupportedFeature: "unsupported_feature",
    ModelNotFound: "model_not_found",
    RequestTooLarge: "request_too_large",
    InvalidRequest: "invalid_value",
    SpeedUnavailable: "speed_unavailable",
    Overloaded: "overloaded",
    DeadlineExceeded: "deadline_exceeded",
    RequestAborted: "aborted",
    ClientTooSlow: "client_too_slow",
    TargetUnavailable: "no_target",
    ReplicaUnavailable: "no_replica",
    OutOfBlocks: "out_of_memory",
    DSparkError: "internal_error",
}

_OUTAGES: dict[type[DSparkError], str] = {
    ReplicaUnavailable: "no replica can take the request now; try again later",
    OutOfBlocks: "the service has no memory left for the request now; try again later",
}


@dataclass(frozen=True, slots=True)
class PublicError:
    """One error as it looks from outside."""

    http_status: int
    grpc_code: str
    """Name of a `grpc.StatusCode`."""
    message: str
    kind: str
    """`type` of the OpenAI error object."""
    code: str
    field: str | None
    retryable: bool

    def body(self) -> dict[str, Any]:
        """The OpenAI error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.field, "code": self.code}}


def public_error(error: BaseException, request_id: str) -> PublicError:
    """How `error` is shown to the client of request `request_id`; any unexpected one is an internal error."""
    codes = status_codes(error)
    return PublicError(
        http_status=codes.http,
        grpc_code=codes.grpc,
        message=_message(error, codes.http, request_id),
        kind=codes.openai_type,
        code=_first_of(_CODES, error) or "internal_error",
        field=error.field if isinstance(error, InvalidRequest) else None,
        retryable=isinstance(error, RETRYABLE),
    )


def _message(error: BaseException, http_status: int, request_id: str) -> str:
    outage = _first_of(_OUTAGES, error)
    if outage is not None:
        return outage
    return f"internal error; request id {request_id}" if http_status == 500 else str(error)


def _first_of(table: dict[type[DSparkError], str], error: BaseException) -> str | None:
    return next((table[kind] for kind in type(error).__mro__ if kind in table), None)
