"""Stateful language-model inference: read a stream once, ask it anything at the cost of the
question.

    model = jaxstate.load("gemma3-270m")
    with jaxstate.Engine(model) as engine:
        session = engine.open(flash=["What was the last price?"])   # kept answered in idle time
        session.push("09:30 ACME traded at 101.20")                 # returns at once
        print(session.ask("Is ACME above 100?", choices=["yes", "no"]).text)

and underneath, state in, state out:

    state = jaxstate.init_state(model, cells=4096)
    state = jaxstate.extend(model, state, tokens)        # reads; takes `state` over
    result = jaxstate.query(model, state, question)      # answers; leaves `state` as it is

Everything that users need is here; `docs` in the repository describe what is behind it.
"""

from jaxstate.cells.session import SessionState
from jaxstate.config import LayerAttention, ModelConfig, Rope, StepConfig
from jaxstate.engine.api.aio import AsyncEngine, AsyncSession
from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import FlashQuery, Session
from jaxstate.engine.core.metrics import EngineMetrics, HistogramRecord
from jaxstate.engine.durability.recovery import RecoveredSession, Recovery
from jaxstate.engine.flash.conditions import Changed, Condition, ConfidenceAbove, Crosses, Equals
from jaxstate.engine.requests.answer_stream import AnswerStream, AsyncAnswerStream
from jaxstate.engine.types.events import Subscription
from jaxstate.engine.types.options import Coalesce, EngineConfig, Policy, Tenant
from jaxstate.engine.types.values import (
    Answer,
    Closed,
    Connected,
    DataUpdated,
    Event,
    FlashReady,
    Moved,
    Receipt,
    SessionInfo,
    Span,
    Usage,
    WindowMoved,
)
from jaxstate.engine.types.window import Window
from jaxstate.errors import (
    BudgetExceeded,
    CapacityExceeded,
    ClosedError,
    DeviceError,
    EngineFailed,
    FingerprintMismatch,
    FlashLimit,
    InvalidInput,
    JaxstateError,
    JournalDamaged,
    JournalError,
    JournalInUse,
    NotFinite,
    PromptTooLong,
    QueueFull,
    SequenceGap,
    SnapshotDamaged,
    SnapshotError,
    StaleState,
    StepFailed,
    TextUnavailable,
    TimedOut,
    UnknownSession,
    UnsupportedModel,
    VersionUnavailable,
    WeightsMismatch,
)
from jaxstate.model.bundle import Model
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.model.loading import load
from jaxstate.persist.files import SnapshotInfo, inspect_snapshot
from jaxstate.persist.snapshot import restore_state, save_state
from jaxstate.records import QueryResult, Sampling
from jaxstate.steps.functional import extend, init_state, query, ready_logits, warm_up
from jaxstate.text import (
    IncrementalDecoder,
    Message,
    Template,
    Tokenizer,
    chat_template,
    plain_template,
)

__version__ = "0.4.0"

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncEngine",
    "AsyncSession",
    "BudgetExceeded",
    "CapacityExceeded",
    "Changed",
    "Closed",
    "ClosedError",
    "Coalesce",
    "Condition",
    "ConfidenceAbove",
    "Connected",
    "Crosses",
    "DataUpdated",
    "DeviceError",
    "Engine",
    "EngineConfig",
    "EngineFailed",
    "EngineMetrics",
    "Equals",
    "Event",
    "FingerprintMismatch",
    "FlashLimit",
    "FlashQuery",
    "FlashReady",
    "HistogramRecord",
    "IncrementalDecoder",
    "InvalidInput",
    "JaxstateError",
    "JournalDamaged",
    "JournalError",
    "JournalInUse",
    "LayerAttention",
    "Message",
    "Model",
    "ModelConfig",
    "Moved",
    "NotFinite",
    "Policy",
    "PromptTooLong",
    "QueryResult",
    "QueueFull",
    "Receipt",
    "RecoveredSession",
    "Recovery",
    "Rope",
    "Sampling",
    "SequenceGap",
    "Session",
    "SessionInfo",
    "SessionState",
    "SnapshotDamaged",
    "SnapshotError",
    "SnapshotInfo",
    "Span",
    "StaleState",
    "StepConfig",
    "StepFailed",
    "Subscription",
    "Template",
    "Tenant",
    "TextUnavailable",
    "TimedOut",
    "Tokenizer",
    "UnknownSession",
    "UnsupportedModel",
    "Usage",
    "VersionUnavailable",
    "WeightsMismatch",
    "Window",
    "WindowMoved",
    "__version__",
    "chat_template",
    "extend",
    "init_state",
    "inspect_snapshot",
    "load",
    "plain_template",
    "query",
    "ready_logits",
    "restore_state",
    "save_state",
    "use_compilation_cache",
    "warm_up",
]
