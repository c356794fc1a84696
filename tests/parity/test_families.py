"""Tiny random models of every family: jaxstate against transformers, in float32.

Compared with a plain eager forward pass of transformers (no cache) over the same tokens, and with
its `generate(do_sample=False)`: `ready_logits` after `extend` in uneven cuts, `query(...).logits`,
the 16 tokens that `query` answers, and their log-probabilities. The models are made by transformers
and reach jaxstate as files that `save_pretrained` wrote; `cases.py` lists them. Some also in half
precision, at far positions, and with what only our decoder can do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import jaxstate
from jaxstate.config import StepConfig
from jaxstate.model.loading import DTypeName

from .cases import CASES, FEW_STEPS, MULTIMODAL, VOCAB, Case
from .checks import (
    ANSWER,
    CELLS,
    CUT_ENDS,
    LOGITS_BOUND,
    QUESTION,
    STREAM,
    check_answer,
    difference,
    extended,
    query_difference,
    ready_difference,
)
from .conftest import Measured
from .reference import (
    Reference,
    all_logits,
    changed_copy,
    greedy,
    random_model,
    reloaded,
    torch,
    transformers,
)

pytestmark = pytest.mark.parity

SEED = 3


class Pair(NamedTuple):
    """One model on both sides."""

    case: Case
    reference: Reference
    model: jaxstate.Model
    directory: Path


def saved(case: Case, directory: Path, **changes: object) -> Reference:
    """Makes a case's model and saves it."""
    reference = random_model(case.kind, case.all_fields(changes), seed=SEED)
    shards = {} if case.shard_size is None else {"max_shard_size": case.shard_size}
    reference.save_pretrained(directory, **shards)
    return reference


def loaded(
    directory: Path, steps: StepConfig = FEW_STEPS, dtype: DTypeName = "float32"
) -> jaxstate.Model:
    return jaxstate.load(directory, dtype=dtype, steps=steps)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp(request.param)
    case = CASES[request.param]
    reference = saved(case, directory)
    return Pair(case, reference, loaded(directory, case.steps), directory)


def test_the_case_shows_what_it_is_named_for(pair: Pair) -> None:
    plain = all_logits(pair.reference, STREAM)
    assert plain.std() > 1.0
    for change in pair.case.unlike:
        other = changed_copy(pair.reference, pair.case.kind, pair.case.all_fields(change))
        assert np.abs(all_logits(other, STREAM) - plain).max() > 1000 * LOGITS_BOUND, change


def test_files(pair: Pair) -> None:
    shards = len(list(pair.directory.glob("*.safetensors")))
    assert (shards == 1) == (pair.case.shard_size is None)
    assert pair.model.tokenizer is None
    expected = sum(parameter.numel() for parameter in pair.reference.parameters())
    assert pair.model.num_params == expected


@pytest.mark.parametrize(
    "ends",
    [CUT_ENDS, (len(STREAM),), range(1, len(STREAM) + 1)],
    ids=["uneven_cuts", "at_once", "token_by_token"],
)
def test_ready_logits(pair: Pair, ends: Sequence[int], measured: Measured) -> None:
    apart = ready_difference(pair.model, pair.reference, ends)
    measured("largest", apart)
    assert apart < LOGITS_BOUND


def test_query_logits(pair: Pair, measured: Measured) -> None:
    apart = query_difference(pair.model, pair.reference)
    measured("largest", apart)
    assert apart < LOGITS_BOUND


def test_greedy_answers(pair: Pair, measured: Measured) -> None:
    apart = 0.0
    for end, state in extended(pair.model, STREAM, (3, 8, 41, 90), CELLS):
        for length in (5, 16):  # the longer one fills the tail
            question = QUESTION[:length]
            result = jaxstate.query(pair.model, state, question, max_tokens=ANSWER)
            prompt = np.concatenate([STREAM[:end], question])
            apart = max(apart, check_answer(result, pair.reference, prompt))
    measured("largest", apart)
    assert apart < LOGITS_BOUND


def test_answers_end_where_generate_ends(tmp_path: Path) -> None:
    case, context, question = CASES["llama-gqa-untied"], STREAM[:41], QUESTION[:5]
    prompt = np.concatenate([context, question])
    endless = greedy(saved(case, tmp_path), prompt, ANSWER)
    ends = [endless[10], endless[6]]
    kept = min(map(endless.index, ends))
    reference = saved(case, tmp_path, eos_token_id=ends)
    assert greedy(reference, prompt, ANSWER) == endless[: kept + 1]

    model = loaded(tmp_path)
    ((_, state),) = extended(model, context, (len(context),), CELLS)
    result = jaxstate.query(model, state, question, max_tokens=ANSWER)
    assert result.tokens.tolist() == endless[:kept]
    assert result.finish_reason == "stop"
    cut = jaxstate.query(model, state, question, max_tokens=kept)
    assert (cut.tokens.tolist(), cut.finish_reason) == (endless[:kept], "length")


# Both sides round activations, at different places: to 8 bits of mantissa and to 11. The bounds are
# of the largest difference; the logits' standard deviations are 1.6 and 6.0.
@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("llama-gqa-untied", "bfloat16", 0.3),
        ("gemma3-mha-tied", "bfloat16", 0.3),
        ("llama-gqa-untied", "float16", 0.06),
    ],
)
def test_half_precision(
    name: str, dtype: DTypeName, bound: float, tmp_path: Path, measured: Measured
) -> None:
    """Ours in half precision is nearer to float32 arithmetic on those weights than theirs."""
    saved(CASES[name], tmp_path).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    reference = reloaded(tmp_path, "float32")
    exact = all_logits(reference, STREAM)
    theirs = all_logits(reloaded(tmp_path, dtype), STREAM)
    model, everywhere = loaded(tmp_path, dtype=dtype), range(1, len(STREAM) + 1)
    states = (state for _, state in extended(model, STREAM, everywhere, CELLS))
    ours = np.stack([jaxstate.ready_logits(model, state) for state in states])
    measured("std of logits", float(exact.std()))
    measured("theirs from float32", difference(theirs, exact))
    measured("ours from theirs", difference(ours, theirs))
    measured("ours from float32", difference(ours, exact))
    assert difference(ours, exact) < bound
    rms, their_rms = (float(np.sqrt(np.mean((x - exact) ** 2))) for x in (ours, theirs))
    measured("ours from float32, rms", rms)
    measured("theirs from float32, rms", their_rms)
    assert rms < their_rms
    # The same files, computed in float32.
    wide = ready_difference(loaded(tmp_path), reference)
    measured("ours in float32", wide)
    assert wide < LOGITS_BOUND


@pytest.mark.parametrize(
    ("rounded", "bound"),
    [
        pytest.param(True, LOGITS_BOUND, id="frequencies_rounded"),
        pytest.param(False, 1e-3, id="as_is"),
    ],
)
def test_far_positions(rounded: bool, bound: float, tmp_path: Path, measured: Measured) -> None:
    """3000 tokens with the RoPE of Llama 3.

    transformers computes frequencies in float32, where some come out one unit in the last place
    off; ours are the rounded exact ones. The angles, frequency * position, then differ by 2.4e-4
    at position 4000. With the same table, there is no difference beyond that of short texts.
    """
    fields = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "head_dim": 64}
    case = Case(kind="Llama", fields={**fields, "max_position_embeddings": 4096})
    reference = saved(case, tmp_path)
    if rounded:
        exact = 5e5 ** (-np.arange(0, 64, 2) / 64)
        reference.model.rotary_emb.inv_freq.copy_(torch.from_numpy(exact))
    tokens = np.random.default_rng(11).integers(0, VOCAB, 3000).astype(np.int32)
    theirs = all_logits(reference, tokens)
    model = loaded(tmp_path, StepConfig(extend_tokens=(256,)))
    apart = max(
        difference(jaxstate.ready_logits(model, state), theirs[end - 1])
        for end, state in extended(model, tokens, range(250, 3001, 250), len(tokens))
    )
    measured("largest", apart)
    assert apart < bound


def test_text_half_of_a_multimodal_model(tmp_path: Path, measured: Measured) -> None:
    reference = random_model("Gemma3", MULTIMODAL, seed=SEED)
    reference.save_pretrained(tmp_path)
    model = loaded(tmp_path)
    apart = ready_difference(model, reference)
    measured("largest", apart)
    assert apart < LOGITS_BOUND


SOFTCAP = 0.5


def test_attention_softcap_is_refused_where_transformers_ignores_it(tmp_path: Path) -> None:
    case, change = CASES["gemma3-mha-tied"], {"attn_logit_softcapping": SOFTCAP}
    without = saved(case, tmp_path)
    capped = changed_copy(without, case.kind, case.all_fields(change))
    np.testing.assert_array_equal(all_logits(capped, STREAM), all_logits(without, STREAM))
    capped.save_pretrained(tmp_path)
    with pytest.raises(jaxstate.UnsupportedModel, match="attn_logit_softcapping"):
        loaded(tmp_path)


def test_attention_softcap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    """The decoder's soft cap on scores against transformers' eager attention, told to apply one."""
    reference = saved(CASES["gemma3-mha-tied"], tmp_path)
    without = all_logits(reference, STREAM)
    modeling = transformers.models.gemma3.modeling_gemma3
    eager = functools.partial(modeling.eager_attention_forward, softcap=SOFTCAP)
    monkeypatch.setattr(modeling, "eager_attention_forward", eager)
    assert np.abs(all_logits(reference, STREAM) - without).max() > 1000 * LOGITS_BOUND

    model = loaded(tmp_path)
    config = dataclasses.replace(model.config, attention_softcap=SOFTCAP)
    model = dataclasses.replace(model, config=config)
    apart = max(ready_difference(model, reference), query_difference(model, reference))
    measured("largest", apart)
    assert apart < LOGITS_BOUND
