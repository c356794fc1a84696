"""Round trips: random parameters -> foreign files -> `load_params`, in every family and format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxstate.config import Family
from jaxstate.errors import InvalidInput, UnsupportedModel, WeightsMismatch
from jaxstate.weights import (
    config_from_gguf,
    load,
    load_params,
    name_table,
    open_gguf,
    open_safetensors,
)
from jaxstate.weights.source import TensorSource

from . import synthetic as syn


class ArraySource:
    """A `TensorSource` over arrays that counts what was read."""

    def __init__(self, tensors: syn.Arrays) -> None:
        self.tensors = tensors
        self.reads: list[tuple[str, int, int]] = []

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        self.reads.append((name, start, stop))
        return self.tensors[name][start:stop].copy()


def assert_equal(params: load.Params, expected: syn.Arrays, dtype: object = np.float32) -> None:
    flat = syn.flatten(params)
    assert flat.keys() == expected.keys()
    for path, array in flat.items():
        wanted = np.dtype(np.float32 if path.endswith("scale") else dtype)  # type: ignore[arg-type]
        assert array.dtype == wanted, path
        np.testing.assert_array_equal(np.asarray(array), expected[path].astype(wanted), path)


def exact_norms(params: syn.Arrays) -> syn.Arrays:
    """Norm scales for which w - 1 + 1 == w in float32."""
    return {
        path: np.round(value * 256) / np.float32(256) if path.endswith("scale") else value
        for path, value in params.items()
    }


@pytest.mark.parametrize("family", syn.FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_safetensors_round_trip(tmp_path: Path, family: Family, dtype: np.typing.DTypeLike) -> None:
    config = syn.tiny_config(family)
    params = exact_norms(syn.random_params(config))
    syn.save_model(tmp_path / "model.safetensors", syn.hf_tensors(config, params))
    loaded = load_params(
        open_safetensors(tmp_path), name_table(config, "hf"), syn.abstract_params(config, dtype)
    )
    assert_equal(loaded, params, dtype)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model."])
def test_gemma3_prefixes_and_image_tensors(prefix: str) -> None:
    config = syn.tiny_config("gemma3")
    params = exact_norms(syn.random_params(config))
    tensors = syn.hf_tensors(config, params, prefix)
    tensors |= {
        "vision_tower.vision_model.head.weight": np.zeros((2, 2), np.float32),
        "model.multi_modal_projector.mm_soft_emb_norm.weight": np.zeros(2, np.float32),
        f"{prefix}layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    }
    source = ArraySource(tensors)
    loaded = load_params(source, name_table(config, "hf"), syn.abstract_params(config))
    assert_equal(loaded, params)
    assert not any("vision" in name or "inv_freq" in name for name, _, _ in source.reads)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_biases_of_all_projections(family: Family) -> None:
    config = syn.tiny_config(family, qkv_bias=True, out_bias=True)
    params = syn.random_params(config)
    abstract = syn.abstract_params(config)
    hf = ArraySource(syn.hf_tensors(config, params))
    assert_equal(load_params(hf, name_table(config, "hf"), abstract), params)
    gguf = ArraySource(syn.gguf_tensors(config, params))
    assert_equal(load_params(gguf, name_table(config, "gguf"), abstract), params)


@pytest.mark.parametrize("family", syn.FAMILIES)
def test_gguf_round_trip(tmp_path: Path, family: Family) -> None:
    config = syn.tiny_config(family)
    params = exact_norms(syn.random_params(config))
    arch = "llama" if family == "mistral" else family
    path = syn.write_gguf(
        tmp_path / "m.gguf", arch, syn.gguf_metadata(config), syn.gguf_tensors(config, params)
    )
    file = open_gguf(path)
    read = config_from_gguf(file.metadata, file.tensors)
    loaded = load_params(file.tensors, name_table(read, "gguf"), syn.abstract_params(config))
    assert_equal(loaded, params)


@pytest.mark.parametrize("elements", [1, 31, 32, 33, 8 * 32 - 1, 8 * 32, 8 * 32 + 1, 10**6])
def test_block_sizes_do_not_matter(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_BLOCK_ELEMENTS", elements)
    config = syn.tiny_config("llama", qkv_bias=True)
    params = syn.random_params(config)
    source = ArraySource(syn.gguf_tensors(config, params))
    loaded = load_params(source, name_table(config, "gguf"), syn.abstract_params(config))
    assert_equal(loaded, params)
    covered: dict[str, int] = {}
    for name, start, stop in source.reads:
        covered[name] = covered.get(name, 0) + stop - start
    assert covered == {name: tensor.shape[0] for name, tensor in source.tensors.items()}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_progress_counts_every_byte(threads: int) -> None:
    config = syn.tiny_config("qwen2")
    abstract = syn.abstract_params(config, ml_dtypes.bfloat16)
    seen: list[tuple[int, int]] = []
    load_params(
        ArraySource(syn.hf_tensors(config, syn.random_params(config))),
        name_table(config, "hf"),
        abstract,
        progress=lambda done, total: seen.append((done, total)),
        num_threads=threads,
    )
    total = sum(x.size * x.dtype.itemsize for x in abstract.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_small_gemma_norms_survive_bfloat16() -> None:
    config = syn.tiny_config("gemma3")
    tensors = syn.hf_tensors(config, syn.random_params(config))
    tensors["model.norm.weight"] = np.full(32, 2**-10, ml_dtypes.bfloat16)
    loaded = load_params(
        ArraySource(tensors),
        name_table(config, "hf"),
        syn.abstract_params(config, ml_dtypes.bfloat16),
    )
    scale = np.asarray(syn.flatten(loaded)["final_norm/scale"])
    np.testing.assert_array_equal(scale, np.full(32, 1 + 2**-10, np.float32))


def test_a_redundant_head_must_equal_the_tied_embedding() -> None:
    config = syn.tiny_config("llama", tied_embeddings=True)
    params = syn.random_params(config)
    tensors = syn.hf_tensors(config, params)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    table, abstract = name_table(config, "hf"), syn.abstract_params(config)
    assert_equal(load_params(ArraySource(tensors), table, abstract), params)
    tensors["lm_head.weight"][-1, -1] += 1
    with pytest.raises(WeightsMismatch, match=r"lm_head\.weight differs"):
        load_params(ArraySource(tensors), table, abstract)
    tensors["lm_head.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(WeightsMismatch, match=r"misshapen: lm_head\.weight"):
        load_params(ArraySource(tensors), table, abstract)


def test_everything_wrong_is_in_one_error_and_nothing_is_read() -> None:
    config = syn.tiny_config("gemma3")
    tensors = syn.hf_tensors(config, syn.random_params(config))
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((3, 5), np.float32)
    tensors["model.layers.2.input_layernorm.weight"] = np.zeros(32, np.float32)
    tensors["model.layers.01.input_layernorm.weight"] = np.zeros(32, np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["language_model.model.norm.weight"] = np.zeros(32, np.float32)
    tensors["model.layers.0.mlp.router.weight"] = np.zeros((2, 2), np.float32)
    source = ArraySource(tensors)
    with pytest.raises(WeightsMismatch) as caught:
        load_params(source, name_table(config, "hf"), syn.abstract_params(config))
    message = str(caught.value)
    for expected in (
        "missing: model.layers.0.self_attn.k_proj.weight",
        "for layers_0/attention/wqkv (k)",
        "misshapen: model.layers.1.mlp.down_proj.weight is (3, 5), (32, 64) is needed",
        "surplus: model.layers.2.input_layernorm.weight",
        "unknown: model.layers.01.input_layernorm.weight",
        "surplus: model.layers.0.self_attn.q_proj.bias",
        "duplicate: model.norm.weight and language_model.model.norm.weight",
        "unknown: model.layers.0.mlp.router.weight",
    ):
        assert expected in message
    assert message.count("\n") == 7
    assert source.reads == []


def test_parameters_without_rules_are_reported() -> None:
    config = syn.tiny_config("llama")
    abstract = syn.abstract_params(config)
    abstract["layers_0/router/kernel"] = jax.ShapeDtypeStruct((32, 4), np.float32)
    abstract["layers_0/mlp/w_gate_up"] = jax.ShapeDtypeStruct((32, 129), np.float32)
    source = ArraySource(syn.hf_tensors(config, syn.random_params(config)))
    with pytest.raises(WeightsMismatch) as caught:
        load_params(source, name_table(config, "hf"), abstract)
    assert "layers_0/router/kernel" in str(caught.value)
    assert "layers_0/mlp/w_gate_up of shape (32, 129)" in str(caught.value)


def test_an_error_while_reading_ends_the_loading() -> None:
    config = syn.tiny_config("llama")

    class Broken(ArraySource):
        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            if "down_proj" in name:
                raise UnsupportedModel("the disk is gone")
            return super().rows(name, start, stop)

    source: TensorSource = Broken(syn.hf_tensors(config, syn.random_params(config)))
    with pytest.raises(UnsupportedModel, match="disk is gone"):
        load_params(source, name_table(config, "hf"), syn.abstract_params(config))


def test_num_threads_is_checked() -> None:
    config = syn.tiny_config("llama")
    with pytest.raises(InvalidInput, match="num_threads"):
        load_params(ArraySource({}), name_table(config, "hf"), {}, num_threads=0)


def test_sharding_puts_arrays_where_asked() -> None:
    config = syn.tiny_config("llama")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = load_params(
        ArraySource(syn.hf_tensors(config, syn.random_params(config))),
        name_table(config, "hf"),
        syn.abstract_params(config),
        sharding=sharding,
    )
    assert all(array.sharding == sharding for array in syn.flatten(loaded).values())


_MEASURE = """
import sys, threading, time
from pathlib import Path
import jax, ml_dtypes, numpy as np
from jaxstate.weights import load_params, name_table, open_safetensors
from tests_weights_synthetic import abstract_params, tiny_config

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

config = tiny_config("llama", vocab_size=60_000, model_dim=512, mlp_dim=4096, num_heads=8,
                     head_dim=64, tied_embeddings=True)
abstract = abstract_params(config, np.float32)
jax.device_put(np.zeros(1)).block_until_ready()
source = open_safetensors(Path(sys.argv[1]))
before = kilobytes("VmRSS")
load_params(source, name_table(config, "hf"), abstract, num_threads=2)
peak = kilobytes("VmHWM") - before
size = sum(x.size * x.dtype.itemsize for x in abstract.values()) / 1024
print(peak / size, size / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_parameters_and_a_little(tmp_path: Path) -> None:
    config = syn.tiny_config(
        "llama",
        vocab_size=60_000,
        model_dim=512,
        mlp_dim=4096,
        num_heads=8,
        head_dim=64,
        tied_embeddings=True,
    )
    abstract = syn.abstract_params(config)
    ones = {path: np.ones(leaf.shape, ml_dtypes.bfloat16) for path, leaf in abstract.items()}
    path = syn.save_model(tmp_path / "model.safetensors", syn.hf_tensors(config, ones))
    sizes = [leaf.size for leaf in abstract.values()]
    assert max(sizes) > 0.6 * sum(sizes)
    here = Path(__file__).parent
    (tmp_path / "tests_weights_synthetic.py").write_text((here / "synthetic.py").read_text())
    script = tmp_path / "measure.py"
    script.write_text(_MEASURE)
    run = subprocess.run(
        [sys.executable, str(script), str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=here.parents[1],
        env={"PYTHONPATH": str(here.parents[1]), "JAX_PLATFORMS": "cpu", "PATH": ""},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    ratio, megabytes = map(float, run.stdout.split())
    assert 150 < megabytes < 300
    assert ratio < 1.3
