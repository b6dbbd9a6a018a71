"""What connected processes exchange, until they disconnect."""

import torch
from torch import distributed

from dlunet.distributed import average_in_place, disconnect, highest, process_count
from tests.forked import TIMEOUT, forking


def in_two(work, folder):
    """What ``work(rank)`` returns in each of two connected processes."""
    started = [forking().Process(target=_connected, args=(work, rank, folder)) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT)
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _connected(work, rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    assert process_count() == 2
    disconnect()
    assert process_count() == 1


def exchange(rank):
    tensors = [torch.full((2, 3), rank + 1.0), torch.tensor(4.0 * rank), torch.full((5,), 2.0 * rank).double()]
    average_in_place(tensors)
    return {"highest": highest((15, 10)[rank], torch.device("cpu")), "means": tensors}


def test_means_and_the_highest_value(tmp_path):
    for found in in_two(exchange, tmp_path):
        assert found["highest"] == 15
        expected = [torch.full((2, 3), 1.5), torch.tensor(2.0), torch.ones(5).double()]
        assert all(torch.equal(*pair) for pair in zip(found["means"], expected, strict=True))
    alone = torch.ones(2)
    average_in_place([alone])
    assert highest(3, torch.device("cpu")) == 3 and alone.tolist() == [1, 1]
