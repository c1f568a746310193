from dspark.wire.pb import session_pb2 as _session_pb2
from dspark.wire.pb import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerificationRequest(_message.Message):
    __slots__ = ("hello", "open", "verify", "close", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: _session_pb2.Hello
    open: _session_pb2.SessionOpen
    verify: VerifyBatch
    close: _session_pb2.SessionClose
    heartbeat: _session_pb2.Heartbeat
    def __init__(self, hello: _Optional[_Union[_session_pb2.Hello, _Mapping]] = ..., open: _Optional[_Union[_session_pb2.SessionOpen, _Mapping]] = ..., verify: _Optional[_Union[VerifyBatch, _Mapping]] = ..., close: _Optional[_Union[_session_pb2.SessionClose, _Mapping]] = ..., heartbeat: _Optional[_Union[_session_pb2.Heartbeat, _Mapping]] = ...) -> None: ...

class VerificationResponse(_message.Message):
    __slots__ = ("welcome", "report", "heartbeat")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    welcome: _session_pb2.Welcome
    report: StepReport
    heartbeat: _session_pb2.Heartbeat
    def __init__(self, welcome: _Optional[_Union[_session_pb2.Welcome, _Mapping]] = ..., report: _Optional[_Union[StepReport, _Mapping]] = ..., heartbeat: _Optional[_Union[_session_pb2.Heartbeat, _Mapping]] = ...) -> None: ...

class VerifyBatch(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[VerifyRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[VerifyRequest, _Mapping]]] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("session_id", "round", "base_length", "tree", "features_from")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FROM_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    round: int
    base_length: int
    tree: _session_pb2.Tree
    features_from: int
    def __init__(self, session_id: _Optional[str] = ..., round: _Optional[int] = ..., base_length: _Optional[int] = ..., tree: _Optional[_Union[_session_pb2.Tree, _Mapping]] = ..., features_from: _Optional[int] = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("results", "failures", "verify_ms", "batch_rows", "free_kv_blocks", "total_kv_blocks", "features", "partial")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    FREE_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[VerifyResult]
    failures: _containers.RepeatedCompositeFieldContainer[_session_pb2.SessionFailure]
    verify_ms: float
    batch_rows: int
    free_kv_blocks: int
    total_kv_blocks: int
    features: _containers.RepeatedCompositeFieldContainer[_session_pb2.FeatureChunk]
    partial: bool
    def __init__(self, results: _Optional[_Iterable[_Union[VerifyResult, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[_session_pb2.SessionFailure, _Mapping]]] = ..., verify_ms: _Optional[float] = ..., batch_rows: _Optional[int] = ..., free_kv_blocks: _Optional[int] = ..., total_kv_blocks: _Optional[int] = ..., features: _Optional[_Iterable[_Union[_session_pb2.FeatureChunk, _Mapping]]] = ..., partial: _Optional[bool] = ...) -> None: ...

class VerifyResult(_message.Message):
    __slots__ = ("session_id", "round", "base_length", "accepted", "token_ids")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    round: int
    base_length: int
    accepted: _tensor_pb2.Tensor
    token_ids: _tensor_pb2.Tensor
    def __init__(self, session_id: _Optional[str] = ..., round: _Optional[int] = ..., base_length: _Optional[int] = ..., accepted: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
