"""Stateful language-model inference: read a stream once, ask it anything at the cost of the
question.

    model = jaxstate.load("gemma3-270m")
    state = jaxstate.init_state(model, cells=4096)
    state = jaxstate.extend(model, state, tokens)        # reads; takes `state` over
    result = jaxstate.query(model, state, question)      # answers; leaves `state` as it is

Everything that users need is here; `docs` in the repository describe the packages behind it.
"""

from jaxstate.cells.session import SessionState
from jaxstate.config import LayerAttention, ModelConfig, Rope, StepConfig
from jaxstate.errors import (
    CapacityExceeded,
    FingerprintMismatch,
    InvalidInput,
    JaxstateError,
    PromptTooLong,
    SnapshotDamaged,
    SnapshotError,
    StaleState,
    TextUnavailable,
    UnsupportedModel,
    WeightsMismatch,
)
from jaxstate.model.bundle import Model
from jaxstate.model.loading import load
from jaxstate.persist.snapshot import SnapshotInfo, inspect_snapshot, restore_state, save_state
from jaxstate.records import QueryResult, Sampling
from jaxstate.steps.functional import extend, init_state, query, ready_logits, warm_up
from jaxstate.text import IncrementalDecoder, Template, Tokenizer, chat_template, plain_template

__version__ = "0.1.0"

__all__ = [
    "CapacityExceeded",
    "FingerprintMismatch",
    "IncrementalDecoder",
    "InvalidInput",
    "JaxstateError",
    "LayerAttention",
    "Model",
    "ModelConfig",
    "PromptTooLong",
    "QueryResult",
    "Rope",
    "Sampling",
    "SessionState",
    "SnapshotDamaged",
    "SnapshotError",
    "SnapshotInfo",
    "StaleState",
    "StepConfig",
    "Template",
    "TextUnavailable",
    "Tokenizer",
    "UnsupportedModel",
    "WeightsMismatch",
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
    "warm_up",
]
