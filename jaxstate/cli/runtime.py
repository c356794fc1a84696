"""What every command needs before it can work: a compilation cache, a model, a way to be stopped.

Comes in: options. Goes out: a `Model` whose steps are compiled, while its weights were being read.
Does not know: what the command does with it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jax

from jaxstate.cli.show import Show
from jaxstate.config import StepConfig, step_config_from_toml
from jaxstate.errors import InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.model.loading import DTypeName, load_files, read_source, resolve_dtype
from jaxstate.steps.compiled import compile_all, plan_steps

# Most lines and questions are no longer; the steps for longer ones are compiled when they come.
_USUAL_TOKENS = 64


def use_compilation_cache() -> Path:
    """Keeps compiled steps between runs, in JAX_COMPILATION_CACHE_DIR or the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    place = Path(given) if given else base / "jaxstate" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return place


def open_model(
    show: Show,
    source: str,
    *,
    cells: int,
    dtype: DTypeName | None,
    steps: StepConfig,
    reads: bool,
) -> Model:
    """Loads a model, and compiles meanwhile what a session of that capacity needs.

    Args:
        show: where progress goes.
        source: a path or a known name.
        cells: capacity.
        dtype: None for the default of the device.
        steps: the shapes; those for usual lines and questions are compiled now, the others when
            they are used.
        reads: whether entries will be read, and not only questions asked.

    Raises:
        UnsupportedModel, InvalidInput: as `jaxstate.load`.
    """
    use_compilation_cache()
    files = read_source(source)
    planned = plan_steps(files.config, resolve_dtype(dtype), steps, cells)
    specs = list(planned.asking_specs(steps.tail_cells[0]))
    if reads:
        specs = [*planned.reading_specs(), *specs]
    specs = [spec for spec in specs if spec.tokens <= _USUAL_TOKENS]
    show.note(f"loading {source} and compiling {len(specs)} steps (compiled once, then kept)")
    with ThreadPoolExecutor(max_workers=1) as pool, show.bar("loading") as advance:
        compiling = pool.submit(compile_all, specs)
        model = load_files(files, dtype=dtype, steps=steps, progress=advance)
        compiling.result()
    return model


class Interrupt:
    """Ctrl-C as a question that is asked between entries, so that none is half read."""

    def __init__(self) -> None:
        self.pressed = False
        self._idle = False

    def press(self, _signal: int, _frame: FrameType | None) -> None:
        """Notes the first Ctrl-C; a second one, or one while idle, stops at once."""
        again, self.pressed = self.pressed, True
        if again or self._idle:
            raise KeyboardInterrupt

    @contextmanager
    def idle(self) -> Iterator[None]:
        """While waiting for input nothing can be half done, so Ctrl-C may break the wait."""
        self._idle = True
        try:
            yield
        finally:
            self._idle = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turns Ctrl-C into a question that the caller asks when it is safe to stop."""
    interrupt = Interrupt()
    before = signal.signal(signal.SIGINT, interrupt.press)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def read_steps(path: Path | None) -> StepConfig:
    """Step sizes from a TOML file; the defaults without one.

    Raises:
        InvalidInput: the file cannot be read or does not fit.
    """
    if path is None:
        return StepConfig()
    try:
        return step_config_from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the step sizes {path} cannot be read: {error}") from error
