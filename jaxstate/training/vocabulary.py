"""A SentencePiece vocabulary for generated streams.

Comes in: a seed. Goes out: a `tokenizer.model`. Digits stand alone, so that a number's tokens are
its characters and no two numbers look alike by accident. Spaces stand alone, so that a name has the
same tokens wherever it stands ("VZMZ" at the start of a line, in quotes, and in an answer): a small
model copies what it has read token by token. Bytes stand in for what is unknown, so any text can be
read. Does not know: models.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import sentencepiece

from jaxstate.training.data import Stream

_STREAM_ENTRIES = 60


def train_vocabulary(seed: int, *, pieces: int = 4096, streams: int = 6000) -> bytes:
    """The bytes of a `tokenizer.model`, the same for the same seed.

    Args:
        seed: of the streams that it is trained on.
        pieces: of the vocabulary, bytes and control pieces included.
        streams: how many of them are read, of 60 entries each.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(seed, streams),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        split_digits=True,
        user_defined_symbols=["\u2581"],  # how SentencePiece writes a space
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _lines(seed: int, streams: int) -> Iterator[str]:
    """Entries and questions as the model will read them, line by line."""
    for number in range(streams):
        stream = Stream(random.Random(f"vocabulary/{seed}/{number}"))
        for place in range(_STREAM_ENTRIES):
            yield stream.entry()
            question = stream.question() if place % 3 == 2 else None
            if question is not None:
                yield f"Question: {question.text}"
                yield f"Answer: {question.answer}"
