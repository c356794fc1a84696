"""Compiled steps that outlive the process.

Comes in: where to keep them, or nothing. Goes out: JAX's persistent compilation cache, switched on.
Does not know: which steps there are.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax


def use_compilation_cache() -> Path:
    """Keeps what is compiled from now on for later processes, and finds what earlier ones kept.

    `jaxstate.load` and the command line call it. A directory that was chosen before
    (JAX_COMPILATION_CACHE_DIR, or `jax_compilation_cache_dir` in `jax.config`) stays; otherwise it
    is `jaxstate/xla` in the user's cache (XDG_CACHE_HOME, or ~/.cache). Everything is kept, however
    quickly it was compiled.

    Returns:
        The directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    chosen = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (unknown to pyright)
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR") or chosen
    place = Path(given) if given else base / "jaxstate" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return place
