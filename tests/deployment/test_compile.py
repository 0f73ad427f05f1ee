"""torch.compile: the same numbers as eager, in one graph where the shapes allow it."""

from __future__ import annotations

import pytest
import torch

from tests.model_tester import HiGRModelTester


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_the_compiled_forward_is_the_eager_one():
    tester = HiGRModelTester()
    model = tester.model(planner_layers=1)
    rows = [tester.flat(model.config, [1, 2, 3], [4, 5]), tester.flat(model.config, [7], [8, 9, 10])]
    batch = tester.batch(rows)
    expected = model(**batch).logits
    # Dynamo's capture is what could go wrong; what a backend makes of the graphs is its own affair.
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**batch).logits, expected)


@torch.no_grad()
def test_the_planner_is_one_graph_for_every_slot():
    tester = HiGRModelTester()
    model = tester.model(planner_layers=1)
    prompts = torch.tensor([tester.prompt(model.config, [1, 2, 3]), tester.prompt(model.config, [4, 5, 6])])
    expected = model.generate(prompts, slate_size=5, return_dict_in_generate=True)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    planner = model.model.planner
    model.model.planner = torch.compile(planner, backend=count, fullgraph=True, dynamic=True)
    found = model.generate(prompts, slate_size=5, return_dict_in_generate=True)
    assert torch.equal(found.slates, expected.slates)
    torch.testing.assert_close(found.scores, expected.scores)
    assert len(graphs) <= 3  # without a past, with a past of one slot, and with a longer one
