"""The exchange of gradients among processes, over gloo."""

import torch
import torch.distributed as dist
from torch import nn

from tests.tiny_runs import FORKS
from trainer import distributed
from trainer.distributed import GradientMean, broadcast_from_main, in_buckets

N = 3


def in_processes(function, folder, n: int = N) -> list:
    """What `function(rank)` returns in each of several processes of one group."""
    processes = [FORKS.Process(target=in_group, args=(function, folder, rank, n)) for rank in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(n)]


def in_group(function, folder, rank: int, n: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=n)
    torch.save(function(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def parameters_of(rank: int) -> list[nn.Parameter]:
    """Of two types; the second has a gradient only in process 1, the fourth in none, the last is not trained."""
    shapes = [(2, 3), (4,), (), (5,)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    parameters.append(nn.Parameter(torch.zeros(3, dtype=torch.float64)))
    parameters.append(nn.Parameter(torch.zeros(3), requires_grad=False))
    for index in (0, 1, 2, 4):
        if index != 1 or rank == 1:
            parameters[index].grad = torch.full_like(parameters[index], 3.0**index * (rank + 1))
    return parameters


def exchange(rank: int) -> dict:
    distributed.BUCKET_BYTES = 8  # a bucket for almost every parameter
    parameters = parameters_of(rank)
    mean = GradientMean(parameters, N)
    losses = [mean(torch.tensor(float(rank))) for _ in range(2)]
    return {"grads": [p.grad for p in parameters], "losses": losses, "buckets": len(mean.buckets)}


def test_gradients_and_loss_become_their_means_and_a_missing_gradient_counts_as_zero(tmp_path):
    for result in in_processes(exchange, tmp_path):
        grads, mean = result["grads"], 2.0  # of the ranks' factors 1, 2 and 3
        assert result["losses"] == [1.0, 1.0] and result["buckets"] == 5
        torch.testing.assert_close(grads[0], torch.full((2, 3), mean))
        torch.testing.assert_close(grads[1], torch.full((4,), 3.0 * 2 / N))  # process 1 alone has it
        torch.testing.assert_close(grads[2], torch.tensor(9.0 * mean))
        torch.testing.assert_close(grads[4], torch.full((3,), 81.0 * mean, dtype=torch.float64))
        assert grads[3] is None and grads[5] is None


def broadcast(rank: int) -> dict:
    torch.manual_seed(rank)
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(3, 4).T)  # not contiguous
    for name, buffer in {
        "tokens": torch.randint(99, (5, 2)).short(), "frozen": torch.rand(5) < 0.5, "scalar": torch.tensor(float(rank)),
        "empty": torch.zeros(0, 3, dtype=torch.float16),
    }.items():  # fmt: skip
        model.register_buffer(name, buffer)
    broadcast_from_main(model)
    return dict(model.state_dict())


def test_every_process_starts_from_the_weights_and_buffers_of_the_first(tmp_path):
    first, *others = in_processes(broadcast, tmp_path)
    assert first["scalar"] == 0 and len(first) == 6
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)


def test_one_process_exchanges_nothing():
    parameter, loss = nn.Parameter(torch.zeros(2)), torch.tensor(3.0)
    assert GradientMean([parameter], 1)(loss) is loss and parameter.grad is None


def test_buckets_keep_the_order_and_never_mix_types():
    parameters = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32)]
    buckets = list(in_buckets(parameters))
    assert [p.dtype for bucket in buckets for p in bucket] == [p.dtype for p in parameters] and len(buckets) == 3
