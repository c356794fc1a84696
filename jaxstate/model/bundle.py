"""A model with everything that is needed to use it.

Comes in: what the readers found. Goes out: `Model`, the first argument of every public function.
Does not know: files, sessions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxstate.config import ModelConfig, StepConfig
from jaxstate.errors import TextUnavailable
from jaxstate.model.decoder import Decoder
from jaxstate.model.devices import Device, device_of
from jaxstate.text import Template, Tokenizer
from jaxstate.weights import Params


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Config, parameters, tokenizer and template of one model; immutable.

    Attributes:
        config: what the decoder computes.
        params: its parameters, a nested dict of arrays.
        tokenizer: text to ids and back, or None if the source had no tokenizer files.
        template: how sessions open and questions close.
        steps: the shapes that get compiled.
        source: where it was loaded from, for messages and `inspect`.
        choice_temperature: at which the shares of choices (`Answer.probability`) are calibrated:
            the log-probabilities of whole answers are divided by it. 1 where nobody measured it.
    """

    config: ModelConfig
    params: Params = field(repr=False)
    tokenizer: Tokenizer | None
    template: Template
    steps: StepConfig = field(default_factory=StepConfig)
    source: str = ""
    choice_temperature: float = 1.0

    def __repr__(self) -> str:
        """What tells it from others; `config` has every number."""
        config = self.config
        return (
            f"Model({self.source!r}, {config.family}, {self.num_params:,} parameters, "
            f"{self.dtype.name}, {config.max_context:,} positions)"
        )

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of matrices, activations and cells."""
        embed = cast(Params, self.params["embed"])
        return cast(jax.Array, embed["embedding"]).dtype

    @cached_property
    def decoder(self) -> Decoder:
        """The Flax module that `params` belong to."""
        return Decoder(config=self.config, dtype=self.dtype)

    @property
    def text(self) -> Tokenizer:
        """The tokenizer, for what cannot do without.

        Raises:
            TextUnavailable: the model was loaded without tokenizer files.
        """
        if self.tokenizer is None:
            raise TextUnavailable(
                f"{self.source or 'this model'} has no tokenizer files (tokenizer.json "
                "or tokenizer.model); extend() and query() work on token ids, text needs them"
            )
        return self.tokenizer

    @cached_property
    def device(self) -> Device:
        """Where the parameters lie; so do sessions, and so do the steps run.

        Raises:
            InvalidInput: they lie on several devices.
        """
        return device_of(self.params)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the model's own, and what its template ends turns with."""
        own = self.config.eos_ids
        if self.tokenizer is None:
            return own
        return tuple(dict.fromkeys((*own, *self.template.stop_ids(self.tokenizer))))

    @property
    def num_params(self) -> int:
        """How many numbers the parameters hold."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over config and the bytes of every parameter; read once, on first use."""
        # How far a session may reach does not change what its cells hold.
        config = dataclasses.replace(self.config, max_context=1)
        digest = hashlib.sha256(repr(config).encode())
        for path, leaf in sorted(traverse_util.flatten_dict(self.params, sep="/").items()):
            digest.update(f"{path}{leaf.shape}{leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()
