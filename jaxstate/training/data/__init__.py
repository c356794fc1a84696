"""Endless, seeded streams of entries with questions whose answers are known exactly.

Comes in: a random number generator. Goes out: `Stream`, which makes one entry after the other and,
at any point, questions about what it has made so far. Nothing is read from anywhere: names, numbers
and wordings are all made here. Does not know: tokens, models.
"""

from jaxstate.training.data.records import FAMILIES, Question
from jaxstate.training.data.streams import Stream

__all__ = ["FAMILIES", "Question", "Stream"]
