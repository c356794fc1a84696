"""Configs: what is refused, and what a preset file may say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from jaxstate.config import LayerAttention, Rope, StepConfig, llama3_rope_factors
from jaxstate.config import step_config_from_toml as from_toml
from jaxstate.errors import InvalidInput
from jaxstate.testing import tiny_config

CONFIGS = Path(__file__).parent.parent / "configs"


def test_every_problem_of_a_config_is_listed() -> None:
    with pytest.raises(InvalidInput) as caught:
        tiny_config(num_heads=3, head_dim=7, vocab_size=0)
    message = str(caught.value)
    assert "vocab_size=0" in message
    assert "num_heads=3 is not a multiple" in message
    assert "head_dim=7 must be even" in message


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (LayerAttention(rope=Rope(base=1e4), window=0), "window=0 must be positive"),
        (LayerAttention(rope=Rope(base=1e4, factors=(1.0,))), "1 RoPE factors, 4 frequencies"),
    ],
)
def test_an_impossible_layer_is_named(layer: LayerAttention, problem: str) -> None:
    with pytest.raises(InvalidInput, match=f"layer 1: {problem}"):
        tiny_config(layers=(LayerAttention(rope=Rope(base=1e4)), layer))


def test_windows_are_distinct_and_in_order() -> None:
    rope = Rope(base=1e4)
    windows = (5, None, 5, 7, None)
    config = tiny_config(layers=tuple(LayerAttention(rope=rope, window=w) for w in windows))
    assert config.windows == (5, None, 7)


def test_llama3_factors_keep_short_waves_and_stretch_long_ones() -> None:
    factors = llama3_rope_factors(
        base=500_000.0,
        head_dim=128,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context=8192,
    )
    waves = [2 * math.pi * 500_000.0 ** (2 * i / 128) for i in range(64)]
    assert all(f == 1.0 for f, wave in zip(factors, waves, strict=True) if wave < 8192 / 4)
    assert all(f == 8.0 for f, wave in zip(factors, waves, strict=True) if wave > 8192)
    assert list(factors) == sorted(factors)
    assert any(1.0 < f < 8.0 for f in factors)


@pytest.mark.parametrize(
    "wrong",
    [
        {"extend_tokens": ()},
        {"extend_tokens": (16, 4)},
        {"question_tokens": (4, 4)},
        {"tail_cells": (0, 4)},
        {"block_cells": 0},
        {"step_tokens": 0},
        {"tail_block_cells": 0},
        {"choice_tokens": (4, 2)},
        {"question_rows": (2, 4)},
        {"question_rows": (1, 64), "tail_blocks": 63},
        {"tail_cells": (1025,), "tail_block_cells": 32, "tail_blocks": 32, "question_rows": (1,)},
    ],
)
def test_step_sizes_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        StepConfig(**wrong)


def test_the_shipped_presets_are_valid() -> None:
    assert from_toml((CONFIGS / "cpu.toml").read_text(encoding="utf-8")) == StepConfig()
    assert from_toml((CONFIGS / "gpu.toml").read_text(encoding="utf-8")).tail_cells[-1] == 4096


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block_cells = ", "not TOML"),
        ("blocks = 4", r"unknown step sizes \['blocks'\]"),
        ("block_cells = [4]", "block_cells.* are integers"),
        ("tail_cells = 4", "lists of integers"),
        ("tail_cells = [4.0]", "lists of integers"),
        ("block_cells = true", "block_cells.* are integers"),
        ("tail_cells = []", "not empty"),
        ("step_tokens = [4]", "step_tokens.* are integers"),
        ("question_rows = 4", "lists of integers"),
        ("tail_blocks = 8", "tail_blocks=8 must be 64 or more"),
    ],
)
def test_a_preset_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        from_toml(text)
