"""Parameters, cells and steps lie on one device: that of the parameters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from jaxstate.engine.executor.pool_size import container_bytes

PROGRAM = """
import dataclasses, jax, numpy as np, pytest, jaxstate
from jaxstate.testing import tiny_model
first, second, third = jax.devices()
model = tiny_model()
moved = dataclasses.replace(model, params=jax.device_put(model.params, second))
sampling = jaxstate.Sampling(temperature=1.0, seed=3)
told = []
with jax.default_device(third):
    for one in (model, moved):
        state = jaxstate.extend(one, jaxstate.init_state(one, 64), [1, 2, 3])
        assert state.pool.groups[0].devices() == {one.device}, one.device
        answer = jaxstate.query(one, state, [4, 5], 4, sampling=sampling).tokens.tolist()
        with jaxstate.Engine(one, warm_up=False, cells=256, sessions=2) as engine:
            session = engine.open(prefix="hi")
            session.push("x")
            told.append((answer, session.ask("q", max_tokens=3, temperature=1.0, seed=3).token_ids))
            session.suspend()
            session.ask("q", max_tokens=2)
assert told[0] == told[1], told
split = {**model.params}
name = next(iter(split))
split[name] = jax.device_put(split[name], second)
with pytest.raises(jaxstate.InvalidInput, match="2 devices"):
    jaxstate.init_state(dataclasses.replace(model, params=split), 64)
print("done")
"""


def test_whatever_the_default_device_is() -> None:
    flags = "--xla_force_host_platform_device_count=3 --xla_backend_optimization_level=0"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.stdout == "done\n", ended.stderr


SEEDED = """
import jax, jaxstate
from jaxstate.testing import tiny_model
with jaxstate.Engine(tiny_model(), warm_up=False, cells=256, sessions=2) as engine:
    session = engine.open(prefix="hello")
    alone = session.ask("What?", max_tokens=4, temperature=1.0, seed=7).token_ids
    futures = [
        session.submit("What?", max_tokens=4, temperature=1.0, seed=seed) for seed in (1, 7, 7, 2)
    ]
    assert futures[1].result().token_ids == futures[2].result().token_ids == alone
    print(alone)
"""


def test_a_seed_means_the_same_whatever_the_default_generator_is() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", SEEDED],
            env={**os.environ, **setting},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
        for setting in (
            dict[str, str](),
            {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg", "JAX_THREEFRY_PARTITIONABLE": "0"},
        )
    }
    assert len(told) == 1


def group(root: Path, path: str, name: str, value: str) -> None:
    (root / "sys/fs/cgroup" / path).mkdir(parents=True, exist_ok=True)
    (root / "sys/fs/cgroup" / path / name).write_text(value, encoding="utf-8")


def test_the_limits_of_a_container_are_known(tmp_path: Path) -> None:
    assert list(container_bytes(tmp_path)) == [], "not on this system"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n", encoding="utf-8")
    group(tmp_path, "outer/inner", "memory.max", "max\n")
    group(tmp_path, "outer", "memory.max", "4096\n")
    group(tmp_path, "", "memory.max", "8192\n")
    assert sorted(container_bytes(tmp_path)) == [4096, 8192]
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,memory:/box\n2:pids:/x\n", encoding="utf-8")
    group(tmp_path, "memory/box", "memory.limit_in_bytes", "1024\n")
    assert list(container_bytes(tmp_path)) == [1024]
