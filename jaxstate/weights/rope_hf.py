"""RoPE and window fields of Hugging Face configs, in both dialects.

Comes in: the `Fields` of a text config. Goes out: one `LayerAttention` a layer; what is unsupported
or contradictory is reported to the fields' problem list.
Old dialect: `rope_theta`, `rope_scaling`, `rope_local_base_freq`, `sliding_window_pattern`. New
(transformers 5): `rope_parameters`, nested by layer type for Gemma 3, and `layer_types`. Checked
against transformers 5.23, `modeling_rope_utils.py` and `models/*/configuration_*.py`.
Does not know: files, tensors.
"""

from __future__ import annotations

from jaxstate.config import Family, LayerAttention, Rope, llama3_rope_factors
from jaxstate.weights.fields import Fields

_FULL, _SLIDING = "full_attention", "sliding_attention"
_DEFAULT_BASE = 10_000.0
_GEMMA3_GLOBAL_BASE = 1_000_000.0
_DEFAULT_WINDOW = 4096  # of Mistral, Qwen 2, Qwen 3 and Gemma 3 alike


def read_layers(
    fields: Fields, family: Family, *, num_layers: int, head_dim: int, max_context: int
) -> tuple[LayerAttention, ...]:
    """What each layer looks at.

    A window of w means w positions including the token's own: transformers' mask for
    `sliding_window=w` is `kv_idx > q_idx - w` (`masking_utils.sliding_window_overlay`), the same as
    `LayerAttention.window`.
    """
    types, window = _layer_types(fields, family, num_layers)
    if family == "gemma3":
        full, sliding = _gemma3_ropes(fields, head_dim, max_context)
    else:
        full = sliding = _flat_rope(fields, head_dim, max_context)
    return tuple(
        LayerAttention(rope=sliding, window=window)
        if kind == _SLIDING
        else LayerAttention(rope=full)
        for kind in types
    )


def _layer_types(fields: Fields, family: Family, num_layers: int) -> tuple[list[str], int | None]:
    if family == "llama":
        return _uniform_types(fields, _FULL, num_layers), None
    if family == "mistral":
        window = fields.optional_integer("sliding_window", _DEFAULT_WINDOW)
        return _uniform_types(fields, _SLIDING if window else _FULL, num_layers), window
    if family == "gemma3":
        window = fields.optional_integer("sliding_window", _DEFAULT_WINDOW)
        default = _gemma3_types(fields, num_layers)
    else:
        window = _qwen_window(fields)
        start = fields.integer("max_window_layers", 28, minimum=0)
        default = [_SLIDING if window and i >= start else _FULL for i in range(num_layers)]
    return _given_types(fields, default, window), window


def _uniform_types(fields: Fields, kind: str, num_layers: int) -> list[str]:
    """Llama and Mistral ignore `layer_types`, so it may only say what they do anyway."""
    types = [kind] * num_layers
    given = fields.texts("layer_types")
    if given is not None and given != types:
        fields.problem(f"layer_types must be {kind!r} for all {num_layers} layers in this family")
    return types


def _qwen_window(fields: Fields) -> int | None:
    used = fields.boolean("use_sliding_window", False)
    window = fields.optional_integer("sliding_window", _DEFAULT_WINDOW)
    return window if used else None


def _gemma3_types(fields: Fields, num_layers: int) -> list[str]:
    pattern = fields.integer("sliding_window_pattern", 6)
    # Written next to `layer_types` by some versions of transformers, and read by none.
    if not fields.has("layer_types"):
        fields.require(
            "_sliding_window_pattern", (pattern,), f"{pattern}, or there must be layer_types"
        )
    fields.ignore(["_sliding_window_pattern"])
    return [_SLIDING if (i + 1) % pattern else _FULL for i in range(num_layers)]


def _given_types(fields: Fields, default: list[str], window: int | None) -> list[str]:
    types = fields.texts("layer_types") or default
    unknown = sorted(set(types) - {_FULL, _SLIDING})
    if unknown:
        fields.problem(f"unsupported kinds of layers in layer_types: {', '.join(unknown)}")
    if len(types) != len(default):
        fields.problem(f"layer_types has {len(types)} entries for {len(default)} layers")
        return default
    if _SLIDING in types and window is None:
        fields.problem("some layers are 'sliding_attention' and no sliding window is in force")
    return types


def _flat_rope(fields: Fields, head_dim: int, max_context: int) -> Rope:
    base = fields.positive("rope_theta", _DEFAULT_BASE)
    scaling, parameters = fields.group("rope_scaling"), fields.group("rope_parameters")
    if scaling is not None and parameters is not None:
        fields.problem("both rope_scaling and rope_parameters are given")
    return _rope(scaling or parameters, base, head_dim, max_context)


def _gemma3_ropes(fields: Fields, head_dim: int, max_context: int) -> tuple[Rope, Rope]:
    """Global and local; `rope_scaling` is of the global layers only."""
    base = fields.positive("rope_theta", _GEMMA3_GLOBAL_BASE)
    local_base = fields.positive("rope_local_base_freq", _DEFAULT_BASE)
    full, sliding = fields.group("rope_scaling"), None
    parameters = fields.group("rope_parameters")
    if parameters is not None:
        if full is not None:
            fields.problem("both rope_scaling and rope_parameters are given")
        full, sliding = parameters.group(_FULL), parameters.group(_SLIDING)
        parameters.finish()
    return (
        _rope(full, base, head_dim, max_context),
        _rope(sliding, local_base, head_dim, max_context),
    )


def _rope(group: Fields | None, base: float, head_dim: int, max_context: int) -> Rope:
    if group is None:
        return Rope(base=base)
    kind, old_kind = group.text("rope_type"), group.text("type")
    if kind and old_kind and kind != old_kind:
        group.problem(f"RoPE is of type {kind!r} by rope_type and {old_kind!r} by type")
    kind = kind or old_kind or "default"
    base = group.positive("rope_theta", base)
    group.require("partial_rotary_factor", (1, 1.0, None), "1 (all of a head is turned)")
    factors: tuple[float, ...] | None = None
    if kind == "linear":
        factors = (group.positive("factor", None),) * (head_dim // 2)
    elif kind == "llama3":
        factors = _llama3_factors(group, base, head_dim, max_context)
    elif kind != "default":
        group.problem(f"RoPE scaling {kind!r} is not supported (default, linear and llama3 are)")
        group.ignore_rest()
    group.finish()
    return Rope(base=base, factors=factors)


def _llama3_factors(
    group: Fields, base: float, head_dim: int, max_context: int
) -> tuple[float, ...] | None:
    low = group.positive("low_freq_factor", None)
    high = group.positive("high_freq_factor", None)
    factor = group.positive("factor", None)
    original = group.integer("original_max_position_embeddings", max_context)
    if high <= low:
        group.problem(f"high_freq_factor {high} must be above low_freq_factor {low}")
        return None
    return llama3_rope_factors(
        base=base,
        head_dim=head_dim,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=original,
    )
