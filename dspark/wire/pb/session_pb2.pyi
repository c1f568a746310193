from dspark.wire.pb import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("protocol", "router_id", "model_fingerprint", "tokenizer_fingerprint")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    router_id: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    def __init__(self, protocol: _Optional[str] = ..., router_id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "replica_id", "model_name", "vocab_size", "max_length", "eos_token_ids", "model_fingerprint", "tokenizer_fingerprint", "tap_layers", "curve", "draft_calls")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TAP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_CALLS_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    replica_id: str
    model_name: str
    vocab_size: int
    max_length: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    model_fingerprint: str
    tokenizer_fingerprint: str
    tap_layers: _containers.RepeatedScalarFieldContainer[int]
    curve: ThroughputCurve
    draft_calls: _containers.RepeatedCompositeFieldContainer[DraftCall]
    def __init__(self, protocol: _Optional[str] = ..., replica_id: _Optional[str] = ..., model_name: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_length: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., model_fingerprint: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., tap_layers: _Optional[_Iterable[int]] = ..., curve: _Optional[_Union[ThroughputCurve, _Mapping]] = ..., draft_calls: _Optional[_Iterable[_Union[DraftCall, _Mapping]]] = ...) -> None: ...

class DraftCall(_message.Message):
    __slots__ = ("sessions", "depth", "draft_ms", "news")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    depth: int
    draft_ms: float
    news: int
    def __init__(self, sessions: _Optional[int] = ..., depth: _Optional[int] = ..., draft_ms: _Optional[float] = ..., news: _Optional[int] = ...) -> None: ...

class ThroughputCurve(_message.Message):
    __slots__ = ("rows", "context_tokens", "step_ms")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    rows: _tensor_pb2.Tensor
    context_tokens: _tensor_pb2.Tensor
    step_ms: _tensor_pb2.Tensor
    def __init__(self, rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., context_tokens: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., step_ms: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "seed", "choice")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    choice: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., choice: _Optional[int] = ...) -> None: ...

class SessionOpen(_message.Message):
    __slots__ = ("session_id", "token_ids", "sampling", "epoch", "features")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    token_ids: _tensor_pb2.Tensor
    sampling: Sampling
    epoch: int
    features: FeatureSpec
    def __init__(self, session_id: _Optional[str] = ..., token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., epoch: _Optional[int] = ..., features: _Optional[_Union[FeatureSpec, _Mapping]] = ...) -> None: ...

class FeatureSpec(_message.Message):
    __slots__ = ("drafter_fingerprint", "tap_layers")
    DRAFTER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TAP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    drafter_fingerprint: str
    tap_layers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, drafter_fingerprint: _Optional[str] = ..., tap_layers: _Optional[_Iterable[int]] = ...) -> None: ...

class FeatureChunk(_message.Message):
    __slots__ = ("session_id", "start", "projected", "values")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    PROJECTED_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    start: int
    projected: bool
    values: _tensor_pb2.Tensor
    def __init__(self, session_id: _Optional[str] = ..., start: _Optional[int] = ..., projected: _Optional[bool] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class SessionClose(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class SessionFailure(_message.Message):
    __slots__ = ("session_id", "error", "message")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    error: str
    message: str
    def __init__(self, session_id: _Optional[str] = ..., error: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Tree(_message.Message):
    __slots__ = ("token_ids", "parents", "scores")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    token_ids: _tensor_pb2.Tensor
    parents: _tensor_pb2.Tensor
    scores: _tensor_pb2.Tensor
    def __init__(self, token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., parents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
