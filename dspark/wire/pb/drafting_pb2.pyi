from dspark.wire.pb import session_pb2 as _session_pb2
from dspark.wire.pb import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DraftingRequest(_message.Message):
    __slots__ = ("hello", "open", "draft", "close", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: _session_pb2.Hello
    open: _session_pb2.SessionOpen
    draft: DraftBatch
    close: _session_pb2.SessionClose
    heartbeat: _session_pb2.Heartbeat
    def __init__(self, hello: _Optional[_Union[_session_pb2.Hello, _Mapping]] = ..., open: _Optional[_Union[_session_pb2.SessionOpen, _Mapping]] = ..., draft: _Optional[_Union[DraftBatch, _Mapping]] = ..., close: _Optional[_Union[_session_pb2.SessionClose, _Mapping]] = ..., heartbeat: _Optional[_Union[_session_pb2.Heartbeat, _Mapping]] = ...) -> None: ...

class DraftingResponse(_message.Message):
    __slots__ = ("welcome", "report", "heartbeat")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    welcome: _session_pb2.Welcome
    report: DraftReport
    heartbeat: _session_pb2.Heartbeat
    def __init__(self, welcome: _Optional[_Union[_session_pb2.Welcome, _Mapping]] = ..., report: _Optional[_Union[DraftReport, _Mapping]] = ..., heartbeat: _Optional[_Union[_session_pb2.Heartbeat, _Mapping]] = ...) -> None: ...

class DraftBatch(_message.Message):
    __slots__ = ("batch_id", "requests")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    batch_id: int
    requests: _containers.RepeatedCompositeFieldContainer[DraftRequest]
    def __init__(self, batch_id: _Optional[int] = ..., requests: _Optional[_Iterable[_Union[DraftRequest, _Mapping]]] = ...) -> None: ...

class DraftRequest(_message.Message):
    __slots__ = ("session_id", "base_length", "new_token_ids", "max_depth", "max_nodes", "features", "max_width")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_DEPTH_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_WIDTH_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    base_length: int
    new_token_ids: _tensor_pb2.Tensor
    max_depth: int
    max_nodes: int
    features: _session_pb2.FeatureChunk
    max_width: int
    def __init__(self, session_id: _Optional[str] = ..., base_length: _Optional[int] = ..., new_token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., max_depth: _Optional[int] = ..., max_nodes: _Optional[int] = ..., features: _Optional[_Union[_session_pb2.FeatureChunk, _Mapping]] = ..., max_width: _Optional[int] = ...) -> None: ...

class DraftReport(_message.Message):
    __slots__ = ("batch_id", "results", "failures", "draft_ms")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    batch_id: int
    results: _containers.RepeatedCompositeFieldContainer[DraftResult]
    failures: _containers.RepeatedCompositeFieldContainer[_session_pb2.SessionFailure]
    draft_ms: float
    def __init__(self, batch_id: _Optional[int] = ..., results: _Optional[_Iterable[_Union[DraftResult, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[_session_pb2.SessionFailure, _Mapping]]] = ..., draft_ms: _Optional[float] = ...) -> None: ...

class DraftResult(_message.Message):
    __slots__ = ("session_id", "base_length", "tree")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    base_length: int
    tree: _session_pb2.Tree
    def __init__(self, session_id: _Optional[str] = ..., base_length: _Optional[int] = ..., tree: _Optional[_Union[_session_pb2.Tree, _Mapping]] = ...) -> None: ...
