"""Fakes and tiny models for tests of jaxstate and of programs that use it."""

from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.testing.clock import FakeClock
from jaxstate.testing.fake_executor import FakeExecutor, FakeStep
from jaxstate.testing.fake_limits import FAKE_LIMITS, SHARED_LIMITS, fake_layout
from jaxstate.testing.lives import Tally
from jaxstate.testing.reference import Reference
from jaxstate.testing.simulating import simulate
from jaxstate.testing.simulation import Simulation
from jaxstate.testing.stepped import SteppedEngine
from jaxstate.testing.tiny import TINY_CONFIG, TINY_STEPS, tiny_config, tiny_model
from jaxstate.testing.watched import WatchedExecutor

__all__ = [
    "FAKE_LIMITS",
    "SHARED_LIMITS",
    "TINY_CONFIG",
    "TINY_STEPS",
    "ByteTokenizer",
    "FakeClock",
    "FakeExecutor",
    "FakeStep",
    "Reference",
    "Simulation",
    "SteppedEngine",
    "Tally",
    "WatchedExecutor",
    "fake_layout",
    "simulate",
    "tiny_config",
    "tiny_model",
]
