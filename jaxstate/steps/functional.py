"""The functional core: state in, state out.

Comes in: a model, a session state, token ids. Goes out: a new state, or an answer that left the
state as it was. Checks every argument before anything runs. Does not know: files, sessions by name,
threads, queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.session import SessionState, check_alive
from jaxstate.errors import CapacityExceeded, InvalidInput, NotFinite
from jaxstate.model.bundle import Model
from jaxstate.model.devices import on_its_device, room_on_device
from jaxstate.records import QueryResult, Sampling, checked_int, checked_type
from jaxstate.steps.answering import Answering
from jaxstate.steps.buckets import chunks
from jaxstate.steps.checks import Tokens, checked_stop, checked_tokens
from jaxstate.steps.compiled import SessionSteps, compile_all, plan_steps


@on_its_device
def init_state(model: Model, cells: int = 4096) -> SessionState:
    """An empty session.

    Args:
        model: the model that will read it.
        cells: capacity in tokens; memory is `layout.bytes_per_session(itemsize)` bytes.

    Raises:
        InvalidInput: `cells` is not within 1 .. `model.config.max_context`.
        DeviceError: the device has no memory for them.
    """
    steps = session_steps(model, cells)
    with room_on_device(f"a session of {cells:,} cells", "give it fewer cells"):
        return steps.open()


@on_its_device
def extend(model: Model, state: SessionState, tokens: Tokens) -> SessionState:
    """Reads tokens into a session.

    Args:
        model: the model that the session belongs to.
        state: taken over (donated): use the returned state from now on.
        tokens: int [T], T >= 1, each within the vocabulary.

    Returns:
        The session with T more cells; `.length` is int32.

    Raises:
        CapacityExceeded: T more cells do not fit; `state` is unchanged and still usable.
        InvalidInput: tokens of a wrong dtype, shape or range, or none.
        StaleState: `state` was taken over by an earlier call.
    """
    steps = steps_of(model, state)
    ids = checked_tokens(model.config.vocab_size, tokens)
    length = int(state.length)
    if length + len(ids) > state.layout.cells:
        raise CapacityExceeded(
            f"the session holds {length} of {state.layout.cells} cells, so {len(ids)} more "
            "do not fit; open it with init_state(model, cells=larger), or save it and "
            "restore_state(…, cells=larger)"
        )
    for chunk in chunks(len(ids), model.steps.extend_tokens):
        padded = np.zeros(chunk.size, np.int32)
        padded[: chunk.count] = ids[chunk.start : chunk.start + chunk.count]
        count = np.int32(chunk.count)
        state = steps.extend(model.params, state, *jax.device_put((padded, count)))
    # Whoever reads or asks next needs it on the host.
    state.length.copy_to_host_async()
    return state


@on_its_device
def query(
    model: Model,
    state: SessionState,
    tokens: Tokens,
    max_tokens: int = 16,
    *,
    sampling: Sampling | None = None,
    stop: Sequence[str] | None = None,
) -> QueryResult:
    """Answers a question about a session; the session stays as it is, bit for bit.

    Args:
        model: the model that the session belongs to.
        state: not changed and still usable.
        tokens: int [T], T >= 1: the question, with whatever makes the model begin an answer
            (`model.template.question_tokens(model.tokenizer, text)`).
        max_tokens: of the answer, at least 1.
        sampling: greedy if None.
        stop: strings that end the answer and are cut from it; needs a tokenizer. None for none.
            The model's end-of-text tokens always end it.

    Raises:
        InvalidInput: wrong tokens, `max_tokens` or `stop`.
        PromptTooLong: question and answer exceed the largest declared tail.
        CapacityExceeded: they would reach past the positions that the model was made for.
        TextUnavailable: `stop` without a tokenizer.
        NotFinite: the model comes to NaN or infinity.
        StaleState: `state` was taken over by `extend`.
    """
    steps = steps_of(model, state)
    ids = checked_tokens(model.config.vocab_size, tokens)
    max_tokens = checked_int("max_tokens", max_tokens)
    if max_tokens < 1:
        raise InvalidInput(f"max_tokens={max_tokens} must be at least 1")
    if not isinstance(sampling, Sampling | None):
        raise InvalidInput(f"sampling={sampling!r} must be a jaxstate.Sampling or None")
    end = int(state.length) + len(ids) + max_tokens - 1
    if end > model.config.max_context:
        raise CapacityExceeded(
            f"the question and its answer would reach position {end}; this model was made for "
            f"{model.config.max_context}. Lower max_tokens or start a new session"
        )
    answering = Answering(model, steps, sampling or Sampling(), checked_stop(stop))
    return answering.run(state, ids, max_tokens)


@on_its_device
def ready_logits(model: Model, state: SessionState) -> NDArray[np.float32]:
    """Float32 [V]: next-token logits after the last committed token.

    Raises:
        InvalidInput: nothing has been read yet.
        NotFinite: the model comes to NaN or infinity.
        StaleState: `state` was taken over by `extend`.
    """
    steps = steps_of(model, state)
    if int(state.length) == 0:
        raise InvalidInput("an empty session has no last token; extend() it first")
    logits = np.asarray(steps.ready(model.params, state))
    if not np.isfinite(logits).all():
        raise NotFinite
    return logits


@on_its_device
def warm_up(
    model: Model, cells: int = 4096, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Compiles every step that sessions of that capacity can need; afterwards nothing compiles.

    Args:
        model: whose steps.
        cells: capacity, as for `init_state`.
        progress: called with (compiled, all) after each.
    """
    compile_all(list(session_steps(model, cells).specs()), progress=progress)


@on_its_device
def session_steps(model: Model, cells: int, slack_cells: int = 0) -> SessionSteps:
    """The compiled steps of sessions of that capacity and slack."""
    checked_type("model", model, Model, "what jaxstate.load gives")
    return plan_steps(model.config, model.dtype, model.steps, cells, slack_cells)


@on_its_device
def steps_of(model: Model, state: SessionState) -> SessionSteps:
    """The compiled steps of that session.

    Raises:
        StaleState: `state` was taken over by `extend`.
        InvalidInput: its cells have another shape or dtype than the model's.
    """
    checked_type("state", state, SessionState, "what init_state, extend or restore_state gives")
    checked_type("model", model, Model, "what jaxstate.load gives")
    check_alive(state)
    steps = session_steps(model, state.layout.cells, state.layout.slack_cells)
    own = (steps.layout, (model.config.model_dim,), model.dtype)
    if own != (state.layout, state.ready.shape, state.ready.dtype):
        raise InvalidInput(
            "this session belongs to another model (its cells have another shape or dtype); "
            "use the model that opened it"
        )
    return steps
