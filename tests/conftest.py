"""Strict numerics for every test: no implicit promotion, no implicit broadcasting, no network."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compiling tiny steps that run a few times: quick code will do. (The
# parity tests run a real model; `make parity` sets this to nothing.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import jax
import pytest

from jaxstate.steps.compiled import forget_compiled

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# `load` would keep thousands of tiny steps in the user's cache.
jax.config.update("jax_enable_compilation_cache", False)

# Each executable takes several mappings of memory, of which Linux gives a process 65,530; past that
# XLA crashes.
MOST_MAPPINGS = 35_000


@pytest.fixture(scope="module", autouse=True)
def few_executables() -> Iterator[None]:
    """Lets go of what earlier modules compiled, before it is too much."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text(encoding="utf-8").count("\n") > MOST_MAPPINGS:
        forget_compiled()
        jax.clear_caches()
        gc.collect()
    yield
