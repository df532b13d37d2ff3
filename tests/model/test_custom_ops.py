"""How the kernels' operations are called; on a CPU, with an operation that needs no kernel."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.ops.triton import call, custom_op


@custom_op
def doubled_for_a_test(x: Tensor, times: int) -> Tensor:
    return x * 2**times


doubled_for_a_test.register_fake(lambda x, times: torch.empty_like(x))
doubled_for_a_test.register_autograd(
    lambda ctx, grad: (grad * 2**ctx.times, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "times", inputs[1]),
)


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [True, False])
def test_an_operation_is_dispatched_only_where_a_gradient_may_be_asked_for(grad):
    x = torch.ones(3, requires_grad=True)
    with torch.set_grad_enabled(grad), Dispatched() as dispatched:
        out = call(doubled_for_a_test, x, 2)
    assert torch.equal(out, 4 * x) and out.requires_grad == grad
    assert ("explicit_memory::doubled_for_a_test" in dispatched.names) == grad
    if grad:
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full((3,), 4.0))


@pytest.mark.parametrize("grad", [True, False])
def test_an_operation_stays_whole_in_a_compiled_graph(grad):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph

    compiled = torch.compile(lambda x: call(doubled_for_a_test, x, 2) + 1, backend=keep, fullgraph=True)
    with torch.set_grad_enabled(grad):
        assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 5.0))
    assert len(graphs) == 1 and "doubled_for_a_test" in graphs[0]
