"""Random models written as GGUF: jaxstate against the transformers model they were made of.

Llama in F32, F16 and Q8_0 (transformers then has the stored values), with llama.cpp's order of
query and key rows, once with Llama 3's RoPE factors and tied embeddings; and both Qwens, whose rows
keep their order. Logits and answers are compared as for the families.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import jaxstate

from .cases import FEW_STEPS, LLAMA3_ROPE, Case
from .checks import (
    ANSWER,
    CELLS,
    LOGITS_BOUND,
    QUESTION,
    STREAM,
    check_answer,
    extended,
    query_difference,
    ready_difference,
)
from .conftest import Measured
from .gguf_files import write_gguf
from .reference import random_model

pytestmark = pytest.mark.parity

# Rows of matrices are whole Q8_0 blocks of 32; the epsilon is the same number in float32.
COMMON = {"vocab_size": 320, "intermediate_size": 64, "rms_norm_eps": 2**-20}
GQA_BIAS = {**COMMON, "head_dim": 16, "attention_bias": True}
LLAMA3_TIED = {
    **COMMON,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "rope_parameters": LLAMA3_ROPE,
}

F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
CASES: Mapping[str, tuple[GGMLQuantizationType, Case]] = {
    "llama-f32-gqa-bias": (F32, Case(kind="Llama", fields=GQA_BIAS)),
    "llama-f16-gqa-bias": (F16, Case(kind="Llama", fields=GQA_BIAS)),
    "llama-q8_0-gqa-bias": (Q8_0, Case(kind="Llama", fields=GQA_BIAS)),
    "llama-f32-mqa-llama3_rope-tied": (F32, Case(kind="Llama", fields=LLAMA3_TIED)),
    "qwen2-q8_0-gqa": (Q8_0, Case(kind="Qwen2", fields=COMMON)),
    "qwen3-f16-gqa": (F16, Case(kind="Qwen3", fields={**COMMON, "head_dim": 16})),
}


@pytest.mark.parametrize("name", CASES)
def test_models(name: str, tmp_path: Path, measured: Measured) -> None:
    matrices, case = CASES[name]
    reference = random_model(case.kind, case.all_fields(), seed=5)
    write_gguf(tmp_path / "model.gguf", reference, matrices)
    model = jaxstate.load(tmp_path / "model.gguf", dtype="float32", steps=FEW_STEPS)
    assert model.text.vocab_size == model.config.vocab_size == 320

    apart = ready_difference(model, reference)
    measured("ready logits", apart)
    assert apart < LOGITS_BOUND
    apart = query_difference(model, reference, ends=(1, 7, 41))
    measured("query logits", apart)
    assert apart < LOGITS_BOUND

    *_, (end, state) = extended(model, STREAM, (59,), CELLS)
    result = jaxstate.query(model, state, QUESTION[:5], max_tokens=ANSWER)
    apart = check_answer(result, reference, np.concatenate([STREAM[:end], QUESTION[:5]]))
    measured("answer", apart)
    assert apart < LOGITS_BOUND
