"""Who owns which block: free, held, kept, and nothing twice. Plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from jaxstate.cells.blocks import BlockPool


def counts(pool: BlockPool) -> tuple[int, int]:
    """Free and held; what is only kept is the rest."""
    pool.check()
    return pool.free, pool.held


def test_a_new_pool_is_free() -> None:
    pool = BlockPool(3)
    assert (pool.count, *counts(pool)) == (3, 3, 0)
    assert not any(pool.owners(block) or pool.is_shared(block) for block in range(3))


def test_every_block_is_taken_once_and_the_last_freed_comes_first() -> None:
    pool = BlockPool(4)
    taken = [pool.take() for _ in range(4)]
    assert sorted(taken) == [0, 1, 2, 3]
    assert counts(pool) == (0, 4)
    for block in (taken[2], taken[0]):
        assert pool.release(block)
    assert counts(pool) == (2, 2)
    assert [pool.take(), pool.take()] == [taken[0], taken[2]]


def test_nothing_is_taken_from_a_pool_that_has_nothing() -> None:
    pool = BlockPool(1)
    pool.take()
    with pytest.raises(IndexError):
        pool.take()


def test_a_shared_block_goes_with_its_last_owner() -> None:
    pool = BlockPool(2)
    block = pool.take()
    assert not pool.is_shared(block)
    pool.share(block)
    assert pool.is_shared(block) and pool.owners(block) == 2
    assert counts(pool) == (1, 1)  # one block, however many have it
    assert not pool.release(block)
    assert not pool.is_shared(block)
    assert counts(pool) == (1, 1)
    assert pool.release(block)
    assert counts(pool) == (2, 0)


def test_a_double_release_is_caught() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.release(block)
    with pytest.raises(AssertionError, match=f"nobody holds block {block}"):
        pool.release(block)
    assert counts(pool) == (2, 0)


def test_a_kept_block_is_not_released_by_those_who_do_not_hold_it() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.keep(block)
    pool.release(block)
    with pytest.raises(AssertionError, match="nobody holds"):
        pool.release(block)
    assert counts(pool) == (1, 0)


def test_a_free_block_can_neither_be_shared_nor_kept() -> None:
    pool = BlockPool(2)
    with pytest.raises(AssertionError, match="block 1 is free"):
        pool.share(1)
    with pytest.raises(AssertionError, match="block 1 cannot be kept"):
        pool.keep(1)
    assert counts(pool) == (2, 0)


def test_a_kept_block_stays_when_its_owners_go_and_can_be_had_again() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.keep(block)
    assert pool.is_shared(block), "what its owner writes would be in the prefix"
    assert not pool.release(block)
    assert counts(pool) == (1, 0)
    assert pool.take() != block
    pool.share(block)
    assert pool.owners(block) == 1
    assert counts(pool) == (0, 2)


def test_a_block_goes_once_nobody_holds_it_and_nobody_keeps_it() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.keep(block)
    assert not pool.unkeep(block), "its owner still has it"
    assert not pool.is_shared(block)
    assert counts(pool) == (1, 1)
    pool.keep(block)
    assert not pool.release(block)
    assert pool.unkeep(block)
    assert counts(pool) == (2, 0)


def test_a_block_is_kept_once() -> None:
    """Else who keeps it second would lose it with the first."""
    pool = BlockPool(1)
    block = pool.take()
    pool.keep(block)
    with pytest.raises(AssertionError, match="cannot be kept"):
        pool.keep(block)
    pool.unkeep(block)
    with pytest.raises(AssertionError, match="is not kept"):
        pool.unkeep(block)
    assert counts(pool) == (0, 1)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda pool: pool._free.append(pool._free[0]), "free twice"),
        (lambda pool: pool._free.append(0), "free and used"),
        (lambda pool: pool._free.pop(), "lost"),
        (lambda pool: setattr(pool, "_held", 0), "count is off"),
    ],
)
def test_the_check_finds_what_is_wrong(damage: Callable[[BlockPool], object], what: str) -> None:
    """The other tests trust it."""
    pool = BlockPool(3)
    while pool.take() != 0:
        pass
    for block in range(1, 3):
        if pool.owners(block):
            pool.release(block)
    pool.check()
    damage(pool)
    with pytest.raises(AssertionError, match=what):
        pool.check()


def test_any_order_of_calls_keeps_every_block_in_one_place() -> None:
    """Against plain dicts of owners and of what is kept."""
    rng = random.Random(7)
    pool, owners, kept = BlockPool(5), dict.fromkeys(range(5), 0), set[int]()
    for _ in range(4000):
        used = [block for block, count in owners.items() if count]
        do = rng.choice(["take", "share", "release", "keep", "unkeep"])
        if do == "take" and pool.free:
            block = pool.take()
            assert not owners[block] and block not in kept
            owners[block] = 1
        elif do == "share" and (some := {*used, *kept}):
            block = rng.choice(sorted(some))
            pool.share(block)
            owners[block] += 1
        elif do == "release" and used:
            block = rng.choice(used)
            owners[block] -= 1
            assert pool.release(block) == (owners[block] == 0 and block not in kept)
        elif do == "keep" and (some := set(used) - kept):
            block = rng.choice(sorted(some))
            pool.keep(block)
            kept.add(block)
        elif do == "unkeep" and kept:
            block = rng.choice(sorted(kept))
            kept.discard(block)
            assert pool.unkeep(block) == (owners[block] == 0)
        assert {block: pool.owners(block) for block in owners} == owners
        assert [b for b in owners if pool.is_shared(b)] == [
            b for b, count in owners.items() if count > 1 or b in kept
        ]
        held = sum(count > 0 for count in owners.values())
        only_kept = sum(owners[block] == 0 for block in kept)
        assert counts(pool) == (5 - held - only_kept, held)
