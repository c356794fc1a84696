"""What every command needs before it can work: a compilation cache, a model, a way to be stopped.

Comes in: options. Goes out: a `Model`, with the steps that the command will use compiled while the
weights were being read. Does not know: what the command does with it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import jax

from jaxstate.cli.show import Show
from jaxstate.config import ModelConfig, StepConfig, step_config_from_toml
from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.pool_size import PoolSize, cells_within, check_fits, device_bytes
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.model.devices import current_device
from jaxstate.model.loading import (
    PLAIN,
    DTypeName,
    check_files,
    load_files,
    read_source,
)
from jaxstate.model.params import abstract_params
from jaxstate.persist.files import inspect_snapshot
from jaxstate.records import Durability
from jaxstate.steps.buckets import smallest_fitting
from jaxstate.steps.compiled import compile_all
from jaxstate.steps.engine_steps import EngineSteps, plan_engine
from jaxstate.steps.spec import StepSpec
from jaxstate.textfiles import read_text_file
from jaxstate.weights import known_names

T = TypeVar("T")
# Most questions are no longer, and neither is what comes through a pipe at once; the steps for
# more are compiled when it comes.
_USUAL_TOKENS = 64
# Of the pool, however little memory there seems to be.
_LEAST_CELLS = 4096
# How long Ctrl-C may go unnoticed.
LOOK_S = 0.05
# Where no bar moves, how far it is is said that often.
_TOLD_EVERY_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Which steps a command is going to use.

    Attributes:
        reads: entries will be read.
        in_bulk: many of them wait from the start, so the largest chunks will be used.
        asks: single questions will be asked.
        flashes: questions that are kept answered.
        copies: a session will be saved or restored.
        sessions: how many there will be.
    """

    reads: bool = True
    in_bulk: bool = False
    asks: bool = False
    flashes: int = 0
    copies: bool = False
    sessions: int = 1


def open_model(
    show: Show,
    source: str,
    *,
    cells: int | None,
    dtype: DTypeName | None,
    steps: StepConfig,
    needs: Needs,
    also: Callable[[ModelConfig, jax.numpy.dtype], Sequence[StepSpec]] | None = None,
    ignore: Sequence[str] = (),
    template: str | None = None,
) -> Model:
    """Loads a model, and compiles meanwhile what an engine for that command is going to use.

    Args:
        show: where progress goes.
        source: a path or a known name.
        cells: capacity of its sessions; None for as many as `room_for` finds.
        dtype: None for the default of the device.
        steps: the shapes; those for usual sizes are compiled now, the others when they are used.
        needs: what the command will do.
        also: further steps to compile.
        ignore, template: as for `jaxstate.load`.

    Raises:
        UnsupportedModel, InvalidInput, DeviceError: as `jaxstate.load`.
    """
    started_s = time.monotonic()
    kept = use_compilation_cache()
    show.note(f"opening {source}")
    files = read_source(source, ignore=ignore, template=template)
    kind, _, _ = check_files(files, dtype)  # before anything that takes long
    size = room_for(files.config, kind, steps, cells, needs.sessions)
    specs = [*_specs_for(files.config, kind, steps, size, needs)]
    specs += also(files.config, kind) if also is not None else ()
    show.note(
        f"loading {num_params(files.config):,} parameters in {kind.name}; of {len(specs)} steps "
        f"those are compiled that {kept} does not have yet"
    )
    done = [0]
    # Nobody waits for it who is interrupted.
    compiling = in_thread(partial(compile_all, specs, progress=_counting(done)), "jaxstate-compile")
    try:
        with show.bar("loading") as advance:
            model = load_files(files, dtype=dtype, steps=steps, progress=advance)
    except Exception:
        wait([compiling])  # a program does not end well in the middle of it
        raise
    _wait_compiled(show, compiling, done, len(specs))
    show.note(
        f"ready after {time.monotonic() - started_s:.1f} s: room for {size.session_cells:,} cells "
        f"(tokens) a session"
    )
    return model


def _counting(done: list[int]) -> Callable[[int, int], None]:
    def count(so_far: int, _: int) -> None:
        done[0] = so_far

    return count


def _wait_compiled(show: Show, compiling: Future[None], done: Sequence[int], total: int) -> None:
    """Waits for what is still being compiled, and says how far it is."""
    told_s = time.monotonic()
    with show.bar("compiling") as advance:
        while not wait([compiling], LOOK_S).done:
            advance(done[0], total)
            if not show.err.is_terminal and time.monotonic() - told_s >= _TOLD_EVERY_S:
                told_s = time.monotonic()
                show.note(f"compiling: {done[0]} of {total} steps")
    compiling.result()


def _specs_for(
    config: ModelConfig, kind: jax.numpy.dtype, steps: StepConfig, size: PoolSize, needs: Needs
) -> Iterator[StepSpec]:
    planned = plan_engine(
        config,
        kind,
        steps,
        session_cells=size.session_cells,
        cells=size.cells,
        sessions=size.sessions,
    )
    return usual_specs(planned, needs)


def usual_specs(planned: EngineSteps, needs: Needs) -> Iterator[StepSpec]:
    """The steps of an engine that questions and entries of usual sizes need."""
    rows = _rows_needed(planned.steps, needs)
    sessions = _sizes_for(needs.sessions, planned.steps.step_sessions)
    longest = planned.steps.extend_tokens[-1] if needs.in_bulk else _USUAL_TOKENS
    for spec in planned.specs():
        match spec.kind:
            case "pool" | "rows":
                wanted = True
            case "commit":
                wanted = needs.reads and spec.tokens <= longest and spec.rows in sessions
            case "start":
                wanted = spec.rows in rows and spec.tokens <= _USUAL_TOKENS
            case "decode":
                wanted = spec.rows in rows and spec.tail_cells == planned.tail_cells[0]
            case "read" | "write" | "take_ready" | "put_ready":
                wanted = needs.copies
            case _:
                wanted = False
        if wanted and (spec.sessions == 1 or needs.sessions > 1):
            yield spec


def _rows_needed(steps: StepConfig, needs: Needs) -> set[int]:
    """Sizes of steps for a question alone, and for all that may go together."""
    together = max(needs.flashes * needs.sessions + needs.asks, needs.asks * needs.sessions)
    if together == 0:
        return set()
    return _sizes_for(together, steps.question_rows)


def _sizes_for(count: int, sizes: tuple[int, ...]) -> set[int]:
    """Sizes of steps for one alone, and for so many at once."""
    return {1, smallest_fitting(count, sizes) or sizes[-1]}


def room_for(
    config: ModelConfig,
    dtype: jax.numpy.dtype,
    steps: StepConfig,
    cells: int | None,
    sessions: int,
) -> PoolSize:
    """The pool of a command's sessions: so many cells for each of them; or, where nobody says, a
    pool that each may take as much of as the model was made for, as large as half of the memory
    beside the parameters.

    Raises:
        DeviceError: the device has no memory for them.
    """
    free_bytes = device_bytes(current_device()) - num_params(config) * dtype.itemsize
    if cells is not None:
        total = in_blocks(cells, steps) * sessions
        size = PoolSize(cells=total, session_cells=cells, sessions=sessions)
        check_fits(config, dtype.itemsize, steps, size, free_bytes)
        return size
    limit_bytes = max(0, free_bytes) // 2
    most = in_blocks(config.max_context, steps) * sessions
    within = cells_within(config, dtype.itemsize, steps, limit_bytes, config.max_context, sessions)
    total = max(min(most, within), in_blocks(min(_LEAST_CELLS, config.max_context), steps))
    return PoolSize(cells=total, session_cells=min(total, config.max_context), sessions=sessions)


def num_params(config: ModelConfig) -> int:
    """How many numbers the parameters of a model hold."""
    leaves = abstract_params(config, jax.numpy.dtype("float32")).values()
    return sum(math.prod(leaf.shape) for leaf in leaves)


def in_blocks(cells: int, steps: StepConfig) -> int:
    """So many cells, in whole blocks."""
    return -(-cells // steps.block_cells) * steps.block_cells


def wait_until_answered(session: Session, go_on: Callable[[], bool]) -> None:
    """Waits until everything is read and every flash query answered there, or refused.

    Args:
        session: whose flash queries.
        go_on: asked again and again; the wait ends when it says no.

    Raises:
        ClosedError: the session ended first.
    """
    future = session.waiting_fresh()
    while go_on() and not wait([future], LOOK_S).done:
        pass
    if not future.cancel():
        future.result()


def in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Lets a thread work that nobody has to wait for, not even at the end of the program."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # for whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def results(futures: Sequence[Future[T]]) -> list[T]:
    """Waits for all of them; Ctrl-C is noticed meanwhile.

    Raises:
        The first error of any of them, at once.
    """
    while (state := wait(futures, LOOK_S, return_when=FIRST_EXCEPTION)).not_done:
        for one in state.done:
            one.result()
    return [one.result() for one in futures]


def engine_for(
    model: Model,
    cells: int | None,
    config: EngineConfig,
    *,
    sessions: int = 1,
    journal: Path | None = None,
    durability: Durability = "os",
) -> Engine:
    """An engine for sessions of so many cells each, which compiles on use what `open_model` did
    not."""
    size = room_for(model.config, model.dtype, model.steps, cells, sessions)
    return Engine(
        model,
        cells=size.cells,
        session_cells=size.session_cells,
        sessions=sessions,
        config=config,
        warm_up=False,
        journal=journal,
        durability=durability,
    )


def capacity(given: int | None, saved: Sequence[Path]) -> int | None:
    """Cells of each session, those that were saved among them; None for what there is room for."""
    return given or max((inspect_snapshot(one).cells for one in saved), default=None)


def model_name(given: str | None, saved: Sequence[Path], otherwise: str | None = None) -> str:
    """The model to load: as given, or as noted in saved sessions.

    Args:
        given: as `--model` says.
        saved: sessions to go on with.
        otherwise: where neither says.

    Raises:
        InvalidInput: neither says, or they contradict each other.
    """
    for one in saved:
        noted = inspect_snapshot(one).notes.get("model")
        if isinstance(noted, str) and noted:
            return noted_model(given, noted, f"the session at {one}")
    if named := given or otherwise:
        return named
    raise InvalidInput(f"which model? Pass --model: a path, or a name ({', '.join(known_names())})")


def noted_model(given: str | None, noted: str, what: str) -> str:
    """The model to load for what another run kept.

    Args:
        given: as `--model` says; None for the one that is noted.
        noted: with what it was kept.
        what: was kept.

    Raises:
        InvalidInput: a name is given, and another model is noted. (A path may be where that one
            lies now; whether it is, its fingerprint says once it is loaded.)
    """
    if given in known_names() and given != noted:
        raise InvalidInput(
            f"--model {given}: {what} was made with {noted}, and its cells mean nothing to another "
            f"model. Leave --model out, or (if it lies elsewhere now) give the path of {noted}"
        )
    return given or noted


def saved_dtype(given: DTypeName | None, saved: Sequence[Path]) -> DTypeName | None:
    """The dtype to load the model in: as given, or as sessions were saved in.

    Raises:
        InvalidInput: they were saved in another than is given.
    """
    for one in saved:
        kept = inspect_snapshot(one).dtype
        if given is not None and kept and kept != given:
            raise InvalidInput(
                f"--dtype {given}: the session at {one} was saved in {kept}; cells of one dtype "
                f"cannot be gone on with in another. Leave --dtype out (or --dtype {kept}), or "
                "stream the text again"
            )
        for name in get_args(DTypeName):
            if kept == name:
                return name
    return given


def check_questions(option: str, questions: Sequence[str]) -> None:
    """Refuses questions without text, before anything is done for them.

    Raises:
        InvalidInput: one of them is blank.
    """
    for question in questions:
        if not question.strip():
            raise InvalidInput(f"{option} {question!r} is empty: ask something (nothing was read)")


def check_lengths(steps: StepConfig, wanted: Sequence[tuple[str, int]]) -> None:
    """Refuses answers that no step can hold, before anything is done for them.

    Args:
        steps: sizes.
        wanted: options, and the tokens that they give answers.

    Raises:
        InvalidInput: which one is too large.
    """
    most = steps.tail_cells[-1]
    for option, tokens in wanted:
        if tokens >= most:
            raise InvalidInput(
                f"{option} {tokens}: a question and its answer have {most} tokens at most; give a "
                "smaller number, or larger tail_cells with --steps (nothing was read)"
            )


def read_template(given: str | None) -> str | None:
    """A template as the command line names it: "plain", or a file of Jinja; None for the model's.

    Raises:
        InvalidInput: the file cannot be read.
    """
    if given is None or given == PLAIN:
        return given
    return read_text_file(Path(given), "the template")


def read_steps(path: Path | None) -> StepConfig:
    """Step sizes from a TOML file; the defaults without one.

    Raises:
        InvalidInput: the file cannot be read or does not fit.
    """
    if path is None:
        return StepConfig()
    return step_config_from_toml(read_text_file(path, "the step sizes"))
