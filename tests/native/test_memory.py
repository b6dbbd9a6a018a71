"""Memory plans: tensors alive at the same time never overlap, and blocks are handed out to one user at a time."""

import threading

import torch
from hypothesis import given
from hypothesis import strategies as st

from dlunet.native.memory import LINE, Blocks, Lifetime, place

lifetimes = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 12), st.integers(0, 12)).map(
        lambda drawn: Lifetime(drawn[0], min(drawn[1:]), max(drawn[1:]))
    ),
    max_size=20,
)


def overlap(one, other):
    return one.offset < other.offset + other.size and other.offset < one.offset + one.size


def alive_together(one, other):
    return any(one.first <= step <= one.last and other.first <= step <= other.last for step in range(13))


@given(lifetimes)
def test_tensors_alive_at_the_same_time_do_not_overlap(tensors):
    size = place(tensors)
    for number, one in enumerate(tensors):
        assert one.offset % LINE == 0 and one.offset >= 0 and one.offset + one.size <= size
        for other in tensors[:number]:
            assert not (alive_together(one, other) and overlap(one, other))
    assert size == max((each.offset + each.size for each in tensors), default=0)


@given(lifetimes)
def test_at_least_what_is_alive_at_once_and_at_most_all(tensors):
    size = place(tensors)
    at_once = (sum(each.size for each in tensors if each.first <= step <= each.last) for step in range(13))
    assert max(at_once) <= size <= sum(each.size + LINE - 1 for each in tensors)


def test_a_chain_takes_two_tensors():
    chain = [Lifetime(64, step, step + 1) for step in range(10)]
    assert place(chain) == 2 * 64


def test_a_block_is_reused_once_given_back():
    blocks = Blocks()
    first, second = blocks.take(100), blocks.take(100)
    assert first.data_ptr() != second.data_ptr() and min(len(first), len(second)) >= 100
    blocks.give_back(first)
    assert blocks.take(80).data_ptr() == first.data_ptr()


def test_the_smallest_fitting_block_is_taken():
    blocks = Blocks()
    given = {size: blocks.take(size) for size in (300, 100, 200)}
    for block in given.values():
        blocks.give_back(block)
    assert blocks.take(150).data_ptr() == given[200].data_ptr()


def test_blocks_that_are_too_small_make_room():
    blocks = Blocks()
    for size in range(1, 50):
        blocks.give_back(blocks.take(size))
    assert len(blocks._free) == 1


@given(st.lists(st.integers(1, 100) | st.none(), max_size=40))
def test_no_block_has_two_users(requests):
    """A number: take a block of this size; None: give back the oldest."""
    blocks, used, most = Blocks(), [], 0
    for size in requests:
        if size is not None:
            used.append(blocks.take(size))
            assert len(used[-1]) >= size
        elif used:
            blocks.give_back(used.pop(0))
        most = max(most, len(used))
        everywhere = used + blocks._free
        assert len({block.data_ptr() for block in everywhere}) == len(everywhere) <= most


def test_a_block_can_be_given_back_while_another_is_taken():
    """By the garbage collector, in the thread that holds the lock."""
    blocks = Blocks()
    first = blocks.take(8)
    with blocks._lock:
        giving = threading.Thread(target=blocks.give_back, args=(first,), daemon=True)
        giving.start()
        giving.join(5)
        assert not giving.is_alive()
    assert blocks.take(8) is first


def test_threads_never_share_a_block():
    blocks, failed = Blocks(), []

    def work(number):
        for _ in range(300):
            block = blocks.take(16)
            block.fill_(number)
            if not bool((block == number).all()):
                failed.append(number)
            blocks.give_back(block)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(blocks._free) <= 4 and all(isinstance(block, torch.Tensor) for block in blocks._free)
