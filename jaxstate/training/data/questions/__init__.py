"""Questions about what a source has said so far, with their exact answers.

Comes in: a source and its history. Goes out: a `Question` of a family that the history allows.
Every rule that an answer follows stands in the docstring of its family (`values`, `extremes`,
`directions`, `limits`, `which`, `keys`, `unknown`); `asking` chooses one. Does not know: how
entries look.
"""

from jaxstate.training.data.questions.asking import ask

__all__ = ["ask"]
