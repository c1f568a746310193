"""Every error this project raises on purpose, as one tree, and their one table of HTTP and gRPC codes.

DSparkError
├── InvalidRequest          the client sent something that cannot be served; names the field        400
│   ├── UnsupportedFeature  a known field whose feature is not offered                               400
│   ├── ModelNotFound                                                                                404
│   └── RequestTooLarge     body or prompt over a limit                                              413
├── Overloaded              a bounded queue is full; try again later                                 429
│   └── SpeedUnavailable    a promised speed could not be kept, this request's or another's          429
├── DeadlineExceeded        the request's own time is over                                           504
├── RequestAborted          Abort was called, or the client went away                                499
├── ClientTooSlow           the unread buffer stayed full for too long                               499
├── ReplicaUnavailable      no replica, or the one in use died                                       503
│   ├── TargetUnavailable
│   └── DraftUnavailable    never reaches a client: the session goes on without drafts
├── ProtocolError           an internal message that does not fit                                    500
│   ├── InvalidMessage      ids, shapes, ranges or numbers out of bounds
│   ├── StaleRound          `round` or `base_length` behind or ahead of the replica's
│   ├── UnknownSession      the replica does not hold this session
│   └── FingerprintMismatch model, tokenizer or protocol differ; refused at the handshake
├── ModelLoadError          a checkpoint that cannot be used; names file and reason                  500
│   └── UnsupportedModel    an architecture that the packed forward cannot run
├── ConfigError             a configuration value that does not fit                                  500
└── OutOfBlocks             the KV cache has no free block                                           503
"""

from dataclasses import dataclass


class DSparkError(Exception):
    """Base of all errors raised on purpose. All arguments go to `super().__init__`, so they survive pickling."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, field)
        self.message = message
        self.field = field
        """The request or message field at fault, where there is one."""

    def __str__(self) -> str:
        return self.message


class InvalidRequest(DSparkError):
    """The client's request cannot be served as it is."""


class UnsupportedFeature(InvalidRequest):
    """A field that is known in the field but not offered here."""


class ModelNotFound(InvalidRequest):
    """No such model on this service."""


class RequestTooLarge(InvalidRequest):
    """Body, prompt or message over its limit."""


class Overloaded(DSparkError):
    """A bounded queue is full."""


class SpeedUnavailable(Overloaded):
    """One more session would leave a promised speed unkept: its own or that of one that runs."""


class DeadlineExceeded(DSparkError):
    """The request's own time is over."""


class RequestAborted(DSparkError):
    """Abort was called for the request, or its client went away."""


class ClientTooSlow(DSparkError):
    """The client left its bounded buffer full for too long."""


class ReplicaUnavailable(DSparkError):
    """No replica of a pool can be reached, or the one in use died."""


class TargetUnavailable(ReplicaUnavailable):
    """Without a target there is no answer."""


class DraftUnavailable(ReplicaUnavailable):
    """Without a drafter there is only less speed."""


class ProtocolError(DSparkError):
    """An internal message that does not fit."""


class InvalidMessage(ProtocolError):
    """Ids, shapes, ranges or numbers out of bounds."""


class StaleRound(ProtocolError):
    """`round` or `base_length` is not the replica's next."""


class UnknownSession(ProtocolError):
    """The replica does not hold this session."""


class FingerprintMismatch(ProtocolError):
    """Model, tokenizer or protocol differ between two ends."""


class ModelLoadError(DSparkError):
    """A checkpoint that cannot be used."""


class UnsupportedModel(ModelLoadError):
    """An architecture that the packed forward cannot run."""


class ConfigError(DSparkError):
    """A configuration value that does not fit."""


class OutOfBlocks(DSparkError):
    """The KV cache has no free block."""


@dataclass(frozen=True, slots=True)
class StatusCodes:
    """How one kind of error looks from outside."""

    http: int
    grpc: str
    """Name of a `grpc.StatusCode`."""
    openai_type: str


#: First match along the class's bases wins, so a subclass without its own row looks like its parent.
STATUS_CODES: dict[type[DSparkError], StatusCodes] = {
    ModelNotFound: StatusCodes(404, "NOT_FOUND", "invalid_request_error"),
    RequestTooLarge: StatusCodes(413, "RESOURCE_EXHAUSTED", "invalid_request_error"),
    InvalidRequest: StatusCodes(400, "INVALID_ARGUMENT", "invalid_request_error"),
    Overloaded: StatusCodes(429, "RESOURCE_EXHAUSTED", "rate_limit_error"),
    DeadlineExceeded: StatusCodes(504, "DEADLINE_EXCEEDED", "timeout_error"),
    RequestAborted: StatusCodes(499, "CANCELLED", "request_aborted"),
    ClientTooSlow: StatusCodes(499, "CANCELLED", "request_aborted"),
    ReplicaUnavailable: StatusCodes(503, "UNAVAILABLE", "server_error"),
    InvalidMessage: StatusCodes(500, "INVALID_ARGUMENT", "server_error"),
    UnknownSession: StatusCodes(500, "NOT_FOUND", "server_error"),
    StaleRound: StatusCodes(500, "FAILED_PRECONDITION", "server_error"),
    FingerprintMismatch: StatusCodes(500, "FAILED_PRECONDITION", "server_error"),
    OutOfBlocks: StatusCodes(503, "RESOURCE_EXHAUSTED", "server_error"),
    DSparkError: StatusCodes(500, "INTERNAL", "server_error"),
}

#: Retrying these can help; the OpenAI client is told so with `x-should-retry`.
RETRYABLE: tuple[type[DSparkError], ...] = (Overloaded, ReplicaUnavailable, OutOfBlocks)


def status_codes(error: BaseException) -> StatusCodes:
    """The codes of an error; anything not raised on purpose is an internal error."""
    for kind in type(error).__mro__:
        if kind in STATUS_CODES:
            return STATUS_CODES[kind]
    return STATUS_CODES[DSparkError]
