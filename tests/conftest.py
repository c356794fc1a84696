"""Strict numerics for every test: no implicit promotion, no implicit broadcasting, no network."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compiling tiny steps that run a few times: quick code will do. (The
# parity tests run a real model; `make parity` sets this to nothing.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
