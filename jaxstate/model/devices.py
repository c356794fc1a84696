"""Which device things are made on.

Comes in: parameters. Goes out: the device that they lie on, and a context in which everything else
(steps, cells, constants) comes to lie there too, whatever the process's default is. Does not know:
models, steps.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar

import jax

from jaxstate.errors import DeviceError, InvalidInput

_PINNED = "pinned_host"
P = ParamSpec("P")
T = TypeVar("T")


class Device(Protocol):
    """What is used of a `jax.Device`."""

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        ...

    def memory_stats(self) -> Mapping[str, int] | None:
        """Of its memory, in bytes; None where it does not know."""
        ...

    def __hash__(self) -> int: ...


def current_device() -> Device:
    """Where new arrays of this thread come to lie.

    Raises:
        DeviceError: JAX cannot use what it was told to.
    """
    chosen: str | Device | None = getattr(jax.config, "jax_default_device")  # noqa: B009
    if chosen is not None and not isinstance(chosen, str):
        return chosen
    try:
        return jax.devices(chosen)[0]
    except (RuntimeError, AssertionError) as error:  # an assertion of JAX's own: no such platform
        told = chosen or os.environ.get("JAX_PLATFORMS") or "its default"
        raise DeviceError(
            f"JAX cannot use the device that it is to use ({told}): {first_line(error)}. Install "
            "jaxlib for it (pip install 'jaxstate[cuda]' or 'jaxstate[tpu]'), or let JAX choose "
            "(unset JAX_PLATFORMS)"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error of a library says, without what follows it."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "it does not say why"


@contextmanager
def room_on_device(what: str, way_out: str) -> Iterator[None]:
    """Says what there was no memory for.

    Args:
        what: is made in the block.
        way_out: what the caller can do.

    Raises:
        DeviceError: the device has no memory for it.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise DeviceError(
                f"the device has no memory for {what} ({first_line(error)}); {way_out}"
            ) from error
        raise


def device_of(params: object) -> Device:
    """The one device of all parameters.

    Raises:
        InvalidInput: they lie on several.
    """
    leaves = (leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array))
    devices: set[Device] = {device for leaf in leaves for device in leaf.devices()}
    if len(devices) > 1:
        shown = ", ".join(sorted(map(str, devices)))
        raise InvalidInput(
            f"the parameters lie on {len(devices)} devices ({shown}); a model runs on one: put all "
            "of them on the same with jax.device_put"
        )
    return devices.pop() if devices else current_device()


def to_host(array: jax.Array) -> jax.Array:
    """An array on its way to the host: `numpy.asarray` of it waits until it is there, and copies
    nothing more.

    By way of memory that the device writes to by itself, where it has such: an H100 then sends
    49 GB/s, otherwise 2.
    """
    (device,) = array.devices()
    if device.platform == "cpu":
        return array
    if not any(memory.kind == _PINNED for memory in device.addressable_memories()):
        array.copy_to_host_async()
        return array
    return jax.device_put(array, array.sharding.with_memory_kind(_PINNED))


def on_its_device(function: Callable[P, T]) -> Callable[P, T]:
    """Lets a function make everything on the device of its first argument, a model or something
    else that has a `device`."""
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        placed = args[0] if args else kwargs[first]
        with jax.default_device(getattr(placed, "device", None)):
            return function(*args, **kwargs)

    return call
