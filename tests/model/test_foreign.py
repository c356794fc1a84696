"""What people give as a model and what is none: named for what it is, with the way out; and what
can be loaded all the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import jaxstate
from jaxstate.config import MAX_STOP_IDS
from jaxstate.errors import DeviceError, InvalidInput, UnsupportedModel
from jaxstate.testing import tiny_model
from jaxstate.text import plain_template
from tests.tiny_directory import write_directory


def changed(path: Path, name: str, **fields: object) -> None:
    """A JSON file with other fields."""
    file = path / name
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **fields}))


def emptied(*names: str, text: str = "{}") -> Callable[[Path], None]:
    def make(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)

    return make


def adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    (path / "adapter_model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (adapter, r"an adapter \(LoRA\) of some/base.*merge it"),
        (emptied("adapter_config.json"), r"an adapter \(LoRA\) of another model"),
        (
            emptied("config.json", "pytorch_model.bin"),
            r"has its weights as pytorch_model.bin, and no safetensors: .*save_pretrained",
        ),
        (emptied("only.gguf"), r"around a GGUF file: give the file, .*only\.gguf"),
        (emptied("a.gguf", "b.gguf"), "several GGUF files"),
        (emptied("session.json"), "a saved session, not a model: ask it with `jaxstate ask`"),
        (emptied("journal.db"), "a journal, not a model"),
        (emptied("snapshots/abc/config.json"), r"a hub's cache around a model: give .*abc"),
        (emptied("params.json", "consolidated.safetensors"), "its authors' own format"),
    ],
)
def test_directories(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(UnsupportedModel, match=message):
        jaxstate.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "a file of weights alone: give the directory"),
        ("pytorch_model.bin", "is a pickle, which could run code"),
        ("model.pt", "is a pickle"),
        ("config.json", "is a part of a model: give the directory"),
        ("model.onnx", "has a format that is not read here"),
    ],
)
def test_files(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match=message):
        jaxstate.load(tmp_path / name)


def test_names_of_repositories() -> None:
    with pytest.raises(InvalidInput, match=r"looks like a repository.*Nothing is downloaded.*hf "):
        jaxstate.load("owner/some-model")
    with pytest.raises(InvalidInput, match="no such file or directory"):
        jaxstate.load("./owner/some-model")
    with pytest.raises(InvalidInput, match="no such file or directory"):
        jaxstate.load("weights.safetensors")


def test_a_file_that_was_cut_short_names_a_few_tensors(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for number in range(40):
        writer.add_tensor(f"blk.{number}.weight", np.ones((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsupportedModel, match=r"truncated.*and \d+ more tensors of 40") as caught:
        jaxstate.load(file)
    assert len(str(caught.value)) < 600


class TestIgnored:
    """Unknown fields that the caller knows to be harmless."""

    def test_they_do_not_keep_a_model_from_being_loaded(self, tmp_path: Path) -> None:
        model = write_directory(tmp_path / "m")
        changed(model, "config.json", new_field=3, other="x")
        with pytest.raises(UnsupportedModel, match=r"ignore=\['new_field', 'other'\]"):
            jaxstate.load(model)
        found = jaxstate.load(model, ignore=["new_field", "other"])
        same = jaxstate.load(write_directory(tmp_path / "same"))
        assert found.fingerprint == same.fingerprint

    def test_only_what_is_unknown_is_ignored(self, tmp_path: Path) -> None:
        model = write_directory(tmp_path / "m")
        with pytest.raises(UnsupportedModel, match="ignore: rope_theta is no unknown field here"):
            jaxstate.load(model, ignore=["rope_theta"])
        changed(model, "config.json", new_field=3, hidden_act="relu")
        with pytest.raises(UnsupportedModel, match="hidden_act") as caught:
            jaxstate.load(model, ignore=["new_field"])
        assert "new_field" not in str(caught.value)
        with pytest.raises(UnsupportedModel) as caught:
            jaxstate.load(model)
        assert "load it all the same" not in str(caught.value)  # it would not help

    def test_nested_fields_have_their_path(self, tmp_path: Path) -> None:
        model = write_directory(tmp_path / "m")
        rope = {"rope_type": "default", "rope_theta": 10_000.0, "new": 1}
        config = json.loads((model / "config.json").read_text())
        del config["rope_theta"]
        (model / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
        with pytest.raises(UnsupportedModel, match=r"rope_parameters\.new") as caught:
            jaxstate.load(model)
        (name,) = re.findall(r"ignore=\['([^']*)'\]", str(caught.value))
        jaxstate.load(model, ignore=[name])


class TestTemplates:
    BROKEN = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"

    def test_one_that_cannot_be_cut_has_a_way_out(self, tmp_path: Path) -> None:
        model = write_directory(tmp_path / "m")
        changed(model, "tokenizer_config.json", chat_template=self.BROKEN)
        with pytest.raises(UnsupportedModel, match=r'template="plain"'):
            jaxstate.load(model)
        assert jaxstate.load(model, template="plain").template == plain_template("<bos>")
        chat = jaxstate.load(model, template=self.CHAT).template
        assert chat.question("Why?") == "\nWhy?[assistant]"
        given = plain_template(None)
        assert jaxstate.load(model, template=given).template == given

    def test_a_path_is_not_a_template(self) -> None:
        with pytest.raises(InvalidInput, match="its text, not its path"):
            jaxstate.load("gemma3-270m", template="chat.jinja")


class TestCalibration:
    def test_it_lies_beside_the_config(self, tmp_path: Path) -> None:
        model = write_directory(tmp_path / "m")
        assert jaxstate.load(model).choice_temperature == 1.0
        (model / "calibration.json").write_text('{"choice_temperature": 2.5}')
        found = jaxstate.load(model)
        assert found.choice_temperature == 2.5
        assert found.fingerprint == jaxstate.load(write_directory(tmp_path / "same")).fingerprint

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"choice_temperature": 0}',
                                      '{"choice_temperature": "a"}', '{"choice_temperature": true}',
                                      '{"choice_temperature": Infinity}'])  # fmt: skip
    def test_what_is_none_is_refused(self, tmp_path: Path, text: str) -> None:
        model = write_directory(tmp_path / "m")
        (model / "calibration.json").write_text(text)
        with pytest.raises(UnsupportedModel, match="calibration"):
            jaxstate.load(model)


class TestEnds:
    @pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
    def test_ids_beyond_the_vocabulary_are_said_at_load(self, tmp_path: Path, where: str) -> None:
        model = write_directory(tmp_path / "m")
        changed(model, where, eos_token_id=[257, 258])
        with pytest.raises(
            UnsupportedModel, match=r"names \[258\], and the vocabulary ends at 257"
        ):
            jaxstate.load(model)

    def test_so_is_that_there_are_too_many(self, tmp_path: Path) -> None:
        model = write_directory(tmp_path / "m")
        changed(model, "generation_config.json", eos_token_id=list(range(MAX_STOP_IDS)))
        assert len(jaxstate.load(model).stop_ids) == MAX_STOP_IDS
        changed(model, "generation_config.json", eos_token_id=list(range(MAX_STOP_IDS + 1)))
        with pytest.raises(UnsupportedModel, match=f"at most {MAX_STOP_IDS} may"):
            jaxstate.load(model)


LOADING = """
import sys, jaxstate
try:
    jaxstate.load(sys.argv[1])
except jaxstate.DeviceError as error:
    print(error)
"""


class TestDevices:
    @pytest.mark.parametrize("cells", [2**62, 10**12])
    def test_a_pool_that_no_device_holds(self, cells: int) -> None:
        with pytest.raises(DeviceError, match=r"GB beside the parameters; at most [\d,]+ cells"):
            jaxstate.Engine(tiny_model(), cells=cells, warm_up=False)

    def test_memory_that_is_gone_is_one_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import jax

        def full(_: object) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

        monkeypatch.setattr("jaxstate.steps.engine_steps.EngineSteps.pool", full)
        with pytest.raises(DeviceError, match=r"no memory for a pool of 64 cells.*fewer cells"):
            jaxstate.Engine(tiny_model(), cells=64, warm_up=False)

    @pytest.mark.parametrize("platform", ["tpu", "cuda"])
    def test_a_device_that_jax_does_not_have(self, tmp_path: Path, platform: str) -> None:
        write_directory(tmp_path / "m")
        ended = subprocess.run(
            [sys.executable, "-c", LOADING, str(tmp_path / "m")],
            env={**os.environ, "JAX_PLATFORMS": platform},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert f"the device that it is to use ({platform})" in ended.stdout, ended.stderr
        assert "unset JAX_PLATFORMS" in ended.stdout
