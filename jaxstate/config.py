"""What a model is and how its steps are cut: frozen, hashable descriptions, without arrays.

Comes in: numbers that the readers in `weights/` or a TOML preset found. Goes out: `ModelConfig`,
which alone decides what the one decoder computes, and `StepConfig`, which declares every shape that
is ever compiled. Does not know: files, tokenizers, devices, jax.

Letters used in every shape of this project:
    B sessions   Q questions of one session   T new tokens     S cells looked at   M cells of a tail
    P blocks     C cells of a block           W table width    L layers            V vocabulary
    N query heads   K key/value heads   H head size   D model size   F MLP size
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

from jaxstate.errors import InvalidInput

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3"]
Activation = Literal["silu", "gelu_tanh"]
AttentionChoice = Literal["auto", "reference", "triton", "triton-interpret"]
# Tokens that may end an answer; families have one to three.
MAX_STOP_IDS = 8
ATTENTION_CHOICES: tuple[AttentionChoice, ...] = get_args(AttentionChoice)


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of one kind of layer.

    Attributes:
        base: the base of the H/2 frequencies, `base ** (-2 i / H)`.
        factors: H/2 numbers that divide those frequencies (linear and Llama-3 scaling are both such
            a table), or None.
    """

    base: float
    factors: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class LayerAttention:
    """What one layer may look at.

    Attributes:
        rope: its position embedding.
        window: a token at position p sees positions p - window + 1 .. p; None sees all.
    """

    rope: Rope
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that distinguishes one decoder from another; behaviour is data.

    Attributes:
        family: which name tables and checks apply to its files.
        layers: one entry a layer.
        max_context: positions that the model was made for.
        activation: of the gated MLP.
        norm_eps: added to the mean square in every RMSNorm.
        query_scale: what queries are multiplied with before the dot product.
        embed_scale: what embeddings are multiplied with, rounded to the parameters' dtype first;
            None for 1.
        qkv_bias, out_bias: whether those projections have a bias.
        qk_norm: RMSNorm over each query and key head before RoPE.
        post_norms: RMSNorm after attention and MLP, before the residual sum (Gemma).
        attention_softcap, final_softcap: `cap * tanh(x / cap)` on attention scores and on logits,
            or None.
        tied_embeddings: whether the output projection is the embedding.
        bos_id: token that opens a text, or None.
        eos_ids: tokens that end an answer.
    """

    family: Family
    vocab_size: int
    model_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerAttention, ...]
    max_context: int
    activation: Activation = "silu"
    norm_eps: float = 1e-6
    query_scale: float
    embed_scale: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    tied_embeddings: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses sizes that no decoder can have, all of them at once."""
        sizes = (
            "vocab_size",
            "model_dim",
            "mlp_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_context",
        )
        wrong = [
            f"{name}={getattr(self, name)} must be positive"
            for name in sizes
            if getattr(self, name) < 1
        ]
        if not self.layers:
            wrong.append("layers is empty")
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            wrong.append(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            wrong.append(f"head_dim={self.head_dim} must be even (RoPE turns pairs)")
        wrong += [
            f"layer {i}: {problem}"
            for i, layer in enumerate(self.layers)
            for problem in self._layer_problems(layer)
        ]
        if wrong:
            raise InvalidInput("this model config is impossible: " + "; ".join(wrong))

    def _layer_problems(self, layer: LayerAttention) -> list[str]:
        problems: list[str] = []
        if layer.window is not None and layer.window < 1:
            problems.append(f"window={layer.window} must be positive")
        if layer.rope.factors is not None and len(layer.rope.factors) != self.head_dim // 2:
            problems.append(
                f"{len(layer.rope.factors)} RoPE factors, {self.head_dim // 2} frequencies"
            )
        return problems

    def __hash__(self) -> int:
        """Computed once: a config is part of the key of every step that is launched."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def query_dim(self) -> int:
        """N * H, the width of all query heads side by side."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """K * H, the width of all key (or value) heads side by side."""
        return self.num_kv_heads * self.head_dim

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct windows, in order of first use: one pool group each."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Every shape that is compiled, declared in one place.

    Attributes:
        block_cells: C, cells of a block.
        extend_tokens: chunk sizes T of `extend`; a longer input is cut into chunks of the largest.
        step_sessions: sizes B of an engine's step that reads chunks of several sessions at once.
            With (1,) no step of any kind serves several sessions, and half as many are compiled.
        session_rows: rows of each session, at most, in a step that answers questions of several.
        question_tokens: chunk sizes T of a question's prefill, cut likewise.
        tail_cells: sizes M of a question with its answer; more than the largest is refused
            (`PromptTooLong`).
        question_rows: sizes of a step that answers several questions at once.
        step_tokens: rows times tokens of a step that begins several questions, or reads several
            chunks, at most; one alone may always use every declared size.
        choice_tokens: sizes T of a given answer that is scored; more than the largest is refused.
        tail_block_cells: cells of a block of the pool that running questions share.
        tail_blocks: blocks of that pool; a question takes what it needs now.
        attention: what computes attention: "auto" for the fastest that works on the device,
            "reference" for plain JAX, "triton" for kernels on an NVIDIA GPU, "triton-interpret" for
            those kernels step by step in plain JAX (slow; for tests).
    """

    block_cells: int = 64
    extend_tokens: tuple[int, ...] = (16, 64, 256)
    step_sessions: tuple[int, ...] = (1, 8, 64)
    session_rows: int = 8
    question_tokens: tuple[int, ...] = (16, 32, 64, 256)
    tail_cells: tuple[int, ...] = (128, 1024)
    question_rows: tuple[int, ...] = (1, 8, 64)
    step_tokens: int = 1024
    choice_tokens: tuple[int, ...] = (4, 16)
    tail_block_cells: int = 32
    tail_blocks: int = 128
    attention: AttentionChoice = "auto"

    def __post_init__(self) -> None:
        """Refuses buckets that are empty, unsorted or not positive, and tails that cannot fit."""
        for field in fields(self):
            size = getattr(self, field.name)
            if field.name == "attention":
                continue
            single = field.name in _SINGLE_SIZES
            if single and not (_is_whole(size) and size >= 1):
                raise InvalidInput(f"{field.name}={size!r} must be a positive whole number")
            if not single and not (isinstance(size, tuple) and all(map(_is_whole, size))):
                raise InvalidInput(
                    f"{field.name}={size!r} must be a tuple of whole numbers, such as (64, 256)"
                )
            if field.name not in _SINGLE_SIZES and not _is_ascending(size):
                raise InvalidInput(f"{field.name}={size} must be positive, ascending and not empty")
        if self.attention not in ATTENTION_CHOICES:
            raise InvalidInput(
                f"attention={self.attention!r} must be one of {', '.join(ATTENTION_CHOICES)}"
            )
        self._check_rows()

    def _check_rows(self) -> None:
        for name in ("question_rows", "step_sessions"):
            if getattr(self, name)[0] != 1:
                raise InvalidInput(f"{name}={getattr(self, name)} must begin with 1")
        largest = -(-self.tail_cells[-1] // self.tail_block_cells)
        needed = max(largest, self.question_rows[-1])
        if needed > self.tail_blocks:
            raise InvalidInput(
                f"tail_blocks={self.tail_blocks} must be {needed} or more: the largest of "
                f"tail_cells={self.tail_cells} takes {largest} blocks of {self.tail_block_cells} "
                f"cells, and each of {self.question_rows[-1]} question_rows takes one"
            )


_SINGLE_SIZES = ("block_cells", "session_rows", "step_tokens", "tail_block_cells", "tail_blocks")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ascending(sizes: tuple[int, ...]) -> bool:
    return bool(sizes) and list(sizes) == sorted(set(sizes)) and sizes[0] >= 1


def llama3_rope_factors(
    *,
    base: float,
    head_dim: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_context: int,
) -> tuple[float, ...]:
    """The Llama 3.1 frequency scaling as a table of H/2 divisors.

    Wavelengths shorter than `original_context / high_freq_factor` stay, those longer than
    `original_context / low_freq_factor` are divided by `factor`, and those between are blended
    linearly (source: the reference implementation that came with the Llama 3.1 weights).
    """

    def divisor(index: int) -> float:
        wavelength = 2 * math.pi * base ** (2 * index / head_dim)
        if wavelength < original_context / high_freq_factor:
            return 1.0
        if wavelength > original_context / low_freq_factor:
            return factor
        smooth = (original_context / wavelength - low_freq_factor) / (
            high_freq_factor - low_freq_factor
        )
        return 1.0 / ((1.0 - smooth) / factor + smooth)

    return tuple(divisor(index) for index in range(head_dim // 2))


def step_config_from_toml(text: str) -> StepConfig:
    """Reads a `StepConfig` from TOML; keys that are left out keep their defaults.

    Raises:
        InvalidInput: not TOML, an unknown key, or a value of the wrong kind.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"the step sizes are not TOML: {error}") from error
    known = {field.name for field in fields(StepConfig)}
    if unknown := sorted(set(values) - known):
        raise InvalidInput(f"unknown step sizes {unknown}; allowed are {sorted(known)}")
    wrong = [name for name, value in values.items() if not _is_size(name, value)]
    if wrong:
        raise InvalidInput(
            f"{wrong}: {', '.join(_SINGLE_SIZES)} are integers, attention is a name, the others "
            "are lists of integers"
        )
    sizes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return StepConfig(**sizes)


def _is_size(name: str, value: object) -> bool:
    if name == "attention":
        return isinstance(value, str)
    if name in _SINGLE_SIZES:
        return type(value) is int
    return isinstance(value, list) and all(type(item) is int for item in value)
