"""Safetensors and GGUF files as tensor sources: row blocks, shards, quantisation, damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from jaxstate.errors import UnsupportedModel
from jaxstate.weights import open_gguf, open_safetensors
from jaxstate.weights.source import TensorSource

from . import synthetic as syn

ROWS = 7
RANGES = [(0, 0), (0, 1), (0, ROWS), (1, 3), (ROWS - 1, ROWS), (ROWS, ROWS)]
RNG = np.random.default_rng(3)


def check_ranges(source: TensorSource, name: str, whole: np.ndarray) -> None:
    assert source.shape(name) == whole.shape
    for start, stop in RANGES:
        rows = source.rows(name, start, stop)
        assert rows.dtype == whole.dtype
        np.testing.assert_array_equal(rows, whole[start:stop])
        assert rows.flags.writeable
    for start, stop in [(-1, 1), (0, ROWS + 1), (3, 2)]:
        with pytest.raises(IndexError):
            source.rows(name, start, stop)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_safetensors_rows(tmp_path: Path, dtype: np.typing.DTypeLike) -> None:
    tensors = {
        "vector": RNG.standard_normal(ROWS).astype(dtype),
        "matrix": RNG.standard_normal((ROWS, 5)).astype(dtype),
        "cube": RNG.standard_normal((ROWS, 2, 3)).astype(dtype),
    }
    source = open_safetensors(syn.save_model(tmp_path / "model.safetensors", tensors))
    assert sorted(source.names()) == sorted(tensors)
    for name, whole in tensors.items():
        check_ranges(source, name, whole)
    with pytest.raises(KeyError):
        source.shape("nothing")


def shard(directory: Path, weight_map: dict[str, str] | None = None) -> Path:
    syn.save_model(directory / "a.safetensors", {"x": np.ones((2, 2), np.float32)})
    syn.save_model(directory / "b.safetensors", {"y": np.zeros(3, np.float32)})
    content = {"weight_map": weight_map or {"x": "a.safetensors", "y": "b.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))
    return directory


def test_shards(tmp_path: Path) -> None:
    source = open_safetensors(shard(tmp_path))
    assert sorted(source.names()) == ["x", "y"]
    np.testing.assert_array_equal(source.rows("y", 1, 3), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({"x": "a.safetensors", "y": "c.safetensors"}, ["shard c.safetensors is missing"]),
        (
            {"x": "b.safetensors", "z": "a.safetensors"},
            ["x should be in b.safetensors", "z should be in a.safetensors and is nowhere", "y in"],
        ),
        ({"x": "../a.safetensors"}, ["no plain file name for x"]),
        ({"x": ".."}, ["no plain file name for x"]),
    ],
)
def test_index_and_shards_disagree(
    tmp_path: Path, weight_map: dict[str, str], expected: list[str]
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        open_safetensors(shard(tmp_path, weight_map))
    assert all(text in str(caught.value) for text in expected)


def test_a_name_in_two_shards(tmp_path: Path) -> None:
    shard(tmp_path)
    syn.save_model(tmp_path / "b.safetensors", {k: np.zeros(3, np.float32) for k in "xy"})
    with pytest.raises(UnsupportedModel, match=r"x is in a\.safetensors and in b\.safetensors"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 1}}']
)
def test_bad_index(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UnsupportedModel, match=r"index\.json"):
        open_safetensors(tmp_path)


def test_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="neither"):
        open_safetensors(tmp_path)


def test_safetensors_types_and_damage(tmp_path: Path) -> None:
    path = syn.save_model(
        tmp_path / "m.safetensors", {"i": np.ones(3, np.int32), "d": np.ones(3, np.float64)}
    )
    with pytest.raises(UnsupportedModel, match=r"(?s)I32.*F64|F64.*I32"):
        open_safetensors(path)
    path = syn.save_model(tmp_path / "m.safetensors", {"x": np.ones((4, 8), np.float32)})
    whole = path.read_bytes()
    for cut in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnsupportedModel, match="damaged or truncated"):
            open_safetensors(path)
    path.write_bytes(whole)
    source = open_safetensors(path)
    path.write_bytes(whole[:-4])
    with pytest.raises(UnsupportedModel, match="truncated"):
        source.rows("x", 3, 4)
    path.unlink()
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        source.rows("x", 0, 1)


def stored_kinds() -> list[GGMLQuantizationType]:
    """Every type that gguf can dequantise."""
    found = []
    for kind in GGMLQuantizationType:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


def encoded(kind: GGMLQuantizationType, rows: int, columns: int) -> np.ndarray:
    """Quantised numbers, or where gguf cannot quantise, bytes with small scales."""
    block, size = GGML_QUANT_SIZES[kind]
    try:
        return quantize(RNG.standard_normal((rows, columns)).astype(np.float32), kind)
    except NotImplementedError:
        # Below 0x3c as a high byte, a float16 is finite and less than one.
        return RNG.integers(0, 0x3C, (rows, columns // block * size)).astype(np.uint8)


@pytest.mark.parametrize("kind", stored_kinds(), ids=lambda kind: kind.name)
def test_gguf_rows_of_every_type(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    data = encoded(kind, ROWS, 512)
    whole = dequantize(data, kind)
    if kind is GGMLQuantizationType.BF16:
        whole = whole.astype(ml_dtypes.bfloat16)
    if kind is GGMLQuantizationType.F16:
        whole = whole.astype(np.float16)
    path = syn.write_gguf(tmp_path / "m.gguf", "llama", {}, {"t": data}, {"t": kind})
    check_ranges(open_gguf(path).tensors, "t", whole)


def test_the_types_that_models_come_in_are_among_them() -> None:
    names = {kind.name for kind in stored_kinds()}
    assert names >= {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K"}


def test_gguf_vectors(tmp_path: Path) -> None:
    vector = RNG.standard_normal(ROWS).astype(np.float32)
    path = syn.write_gguf(tmp_path / "m.gguf", "llama", {}, {"v": vector})
    check_ranges(open_gguf(path).tensors, "v", vector)
    data = quantize(RNG.standard_normal(64).astype(np.float32), GGMLQuantizationType.Q8_0)
    kinds = {"v": GGMLQuantizationType.Q8_0}
    path = syn.write_gguf(tmp_path / "q.gguf", "llama", {}, {"v": data}, kinds)
    expected = dequantize(data, GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(open_gguf(path).tensors.rows("v", 31, 40), expected[31:40])


def test_metadata_equals_gguf_readers(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "▁ü", "", "🦙"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1000.0])
    writer.add_array("flags", [True, False])
    writer.add_array("ints", [-1, 2])
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "a\nb")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = {
        key: value.contents()
        for key, value in gguf.GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }
    metadata = open_gguf(path).metadata
    assert metadata == expected
    assert {k: type(v) for k, v in metadata.items()} == {k: type(v) for k, v in expected.items()}


def small_gguf(path: Path) -> bytes:
    metadata: dict[str, int | float | str | bool] = {"llama.block_count": 1, "x": "yz", "b": True}
    tensors = {"t": np.ones((2, 4), np.float32), "u": np.ones(3, np.float16)}
    return syn.write_gguf(path, "llama", metadata, tensors).read_bytes()


def test_truncated_gguf_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = small_gguf(path)
    # The last tensor is padded to the alignment; what counts is its end.
    end = whole.rindex(np.ones(3, np.float16).tobytes()) + 6
    for cut in range(end):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnsupportedModel, match=r"m\.gguf"):
            open_gguf(path)
    path.write_bytes(whole[:end])
    open_gguf(path)


def test_damaged_gguf_never_raises_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = small_gguf(path)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[RNG.integers(0, len(whole) - 32)] ^= 1 << int(RNG.integers(0, 8))
        path.write_bytes(damaged)
        try:
            file = open_gguf(path)
            for name in file.tensors.names():
                file.tensors.rows(name, 0, file.tensors.shape(name)[0])
        except UnsupportedModel:
            refused += 1
    assert refused > 50


def header(num_tensors: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, 0) + body


def tensor_entry(name: bytes, dims: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    packed = struct.pack(f"<Q{len(name)}sI", len(name), name, len(dims))
    return packed + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"GGML" + bytes(40), "does not start"),
        (header(0, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big endian"),
        (header(2, tensor_entry(b"t", (4,), 0) * 2), "'t' occurs twice"),
        (header(1, tensor_entry(b"t", (1,) * 5, 0)), "5 dimensions"),
        (header(1, tensor_entry(b"\xff", (4,), 0)), "utf-8"),
        (header(2**60), "ends within its header"),
        (header(1, tensor_entry(b"t", (2**62, 2**62), 0)), "truncated"),
        (header(1, tensor_entry(b"t", (33,), 8) + bytes(64)), "not made of Q8_0 blocks"),
        (
            header(2, tensor_entry(b"t", (4,), 99) + tensor_entry(b"u", (4,), 26) + bytes(64)),
            "t has the unknown type 99; u has type I32, which cannot be dequantised",
        ),
    ],
)
def test_gguf_refusals(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel) as caught:
        open_gguf(path)
    assert expected in str(caught.value)


def test_split_and_absent_gguf(tmp_path: Path) -> None:
    path = syn.write_gguf(tmp_path / "m.gguf", "llama", {"split.count": 3}, {})
    with pytest.raises(UnsupportedModel, match="one part of 3"):
        open_gguf(path)
    with pytest.raises(UnsupportedModel, match="nothing"):
        open_gguf(tmp_path / "nothing.gguf")


def test_gguf_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = small_gguf(path)
    file = open_gguf(path)
    path.write_bytes(whole[:-64])
    with pytest.raises(UnsupportedModel, match="truncated"):
        file.tensors.rows("t", 0, 2)
