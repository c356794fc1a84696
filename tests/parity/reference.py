"""The side that is trusted: transformers models in eager float32, and what they compute.

Random models (`random_model`) get weights of such a size that attention is far from uniform, logits
have a standard deviation around 1 or more, and no norm or bias is trivial: with transformers' own
initialisation most mistakes would hide below any tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

Reference = Any  # a transformers model; its classes are generated, and say little more
Logits = NDArray[np.float32]
Tokens = NDArray[np.int32]

# config class -> (model class)
CLASSES = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM"),
    "Mistral": ("MistralConfig", "MistralForCausalLM"),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "Gemma3Text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "Gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration"),
}
# Norms are stored as themselves, and by Gemma 3 as what is added to 1.
NORM_MEAN = {"gemma3": 0.0, "gemma3_text": 0.0}


def random_model(kind: str, fields: Mapping[str, object], *, seed: int) -> Reference:
    """A model of that kind with random, clearly non-trivial weights."""
    config_class, model_class = CLASSES[kind]
    config = getattr(transformers, config_class)(**fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).float().eval()
    assert model.config._attn_implementation == "eager"
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, std = _distribution(name, parameter.shape, config.model_type)
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
    return model


def _distribution(name: str, shape: Sequence[int], model_type: str) -> tuple[float, float]:
    if name.endswith("bias"):
        return 0.0, 0.5
    if len(shape) == 1:
        return NORM_MEAN.get(model_type, 1.0), 0.3
    if "embed_tokens" in name:
        return 0.0, 1.0
    return 0.0, 1.5 * shape[-1] ** -0.5


def reloaded(directory: Path, dtype: str) -> Reference:
    """A saved model as transformers loads it; unlike `.to(dtype)` this keeps RoPE in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()


def reloaded_gguf(path: Path) -> Reference:
    """A GGUF file as transformers loads it, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def changed_copy(model: Reference, kind: str, fields: Mapping[str, object]) -> Reference:
    """The same weights under another config; weights that it has no place for are left out."""
    other = random_model(kind, fields, seed=0)
    missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert not missing, missing
    return other


def all_logits(model: Reference, tokens: Tokens, *, keep: int = 0) -> Logits:
    """[T, V] by one plain forward pass: the logits after each token, or after the last `keep`."""
    with torch.no_grad():
        logits = model(_ids(tokens), use_cache=False, logits_to_keep=keep).logits[0]
    return logits.float().numpy()


def greedy(model: Reference, tokens: Tokens, count: int) -> list[int]:
    """`generate(do_sample=False)`: up to `count` new tokens, the one that ended it included."""
    ids = _ids(tokens)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
    )
    return out[0, ids.shape[1] :].tolist()


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _ids(tokens: Tokens) -> Any:  # noqa: ANN401
    return torch.tensor(np.asarray(tokens)[None], dtype=torch.int64)
