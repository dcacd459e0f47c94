"""Scales over the steps: a trace worked out by hand, and what is shared, saved and forgotten."""

import math

import pytest
import torch

from leveret.precision.fp8_format import E4M3, amax_of, cast
from leveret.precision.fp8_scaling import GRADIENT, INPUT, WEIGHT, Recipe, Scaling


def number(amax):
    return torch.tensor([0.5 * amax, -amax])


def run(recipe, amaxes):
    """(scale the input was cast by, history, scale after the step) of each step, whose micro-batches have `amaxes`."""
    scaling = Scaling(recipe, num_linears=1)
    trace = []
    for step in amaxes:
        used = [round(1 / float(scaling.cast(number(amax), 0, INPUT).inverse_scale), 3) for amax in step]
        scaling.cast(number(1.0), 0, WEIGHT)
        scaling.cast(number(1.0), 0, GRADIENT)
        scaling.end_step()
        trace.append((used, scaling.history[:, INPUT].tolist(), float(scaling.scale[INPUT])))
    return trace


STEPS = [[2.0, 4.0], [1.0], [0.5, 0.25], [7.0], [0.0]]
"""The amax of the input in each micro-batch of five steps; that of a step is 4, 1, 0.5, 7, 0."""


def test_the_history_of_amaxes_and_the_scales_are_those_of_a_trace_by_hand():
    assert run(Recipe(history=3), STEPS) == [
        # Nothing is known yet: each is cast by its own amax, 448 / 2 and 448 / 4.
        ([224.0, 112.0], [4.0, 0.0, 0.0], 112.0),
        ([112.0], [1.0, 4.0, 0.0], 112.0),
        ([112.0, 112.0], [0.5, 1.0, 4.0], 112.0),
        ([112.0], [7.0, 0.5, 1.0], 64.0),  # 4 has left; an input of 7 was cast by 112 and saturated
        ([64.0], [0.0, 7.0, 0.5], 64.0),
    ]


def test_by_the_most_recent_amax_with_a_margin():
    assert run(Recipe(history=2, of_history="most_recent", margin=1), STEPS) == [
        ([112.0, 56.0], [4.0, 0.0], 56.0),
        ([56.0], [1.0, 4.0], 224.0),
        ([224.0, 224.0], [0.5, 1.0], 448.0),
        ([448.0], [7.0, 0.5], 32.0),
        ([32.0], [0.0, 7.0], 32.0),  # an amax of 0 says nothing: the scale stays
    ]


def test_current_scaling_looks_at_the_tensor_alone_and_has_nothing_to_save():
    scaling = Scaling(Recipe(kind="current", margin=1), num_linears=1)
    for amax in (2.0, 1e-4, 7.0):
        x = torch.randn(8, 4)
        x = x / x.abs().max() * amax
        stored = scaling.cast(x, 0, INPUT)
        assert torch.equal(stored.data.float(), cast(x, 224.0 / amax_of(x), E4M3).data.float())
        scaling.end_step()
    assert scaling.state() == {}
    assert float(scaling.cast(torch.zeros(3), 0, INPUT).written_out().abs().max()) == 0


def test_the_largest_number_is_saturated_not_lost_when_the_history_is_too_small():
    scaling = Scaling(Recipe(), num_linears=1)
    for role in (INPUT, WEIGHT, GRADIENT):
        scaling.cast(number(1.0), 0, role)
    scaling.end_step()
    assert scaling.cast(torch.tensor([100.0, 0.5]), 0, INPUT).written_out().tolist() == [1.0, 0.5]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_amax_that_is_not_finite_leaves_the_scale_and_is_there_to_be_seen(bad):
    scaling = Scaling(Recipe(history=2, of_history="most_recent"), num_linears=1)
    scaling.cast(number(2.0), 0, INPUT)
    scaling.end_step()
    scaling.cast(number(bad), 0, INPUT)
    assert not math.isfinite(scaling.amax.max())
    scaling.end_step()
    assert float(scaling.scale[INPUT]) == 224.0


def test_what_several_linears_read_is_cast_once_and_noted_for_all():
    scaling = Scaling(Recipe(), num_linears=2)
    x = torch.randn(2, 3, 4)
    first, second = scaling.cast_input(x, 0), scaling.cast_input(x, 1)
    assert first is second
    assert first.data.shape == (6, 4)
    assert scaling.amax[[0, 3]].tolist() == [float(x.abs().max())] * 2
    x.mul_(2)
    assert scaling.cast_input(x, 1) is not second
    assert float(scaling.amax[3]) == float(x.abs().max())


def test_a_state_that_comes_back_goes_on_to_the_bit_also_when_a_step_was_under_way():
    torch.manual_seed(0)
    steps = torch.randn(6, 8, 4).exp()
    scalings = [Scaling(Recipe(history=3), num_linears=1) for _ in range(2)]
    for x in steps[:3]:
        scalings[0].cast(x, 0, INPUT)
        scalings[0].end_step()
    saved = {name: tensor.clone() for name, tensor in scalings[0].state().items()}
    scalings[1].cast(steps[5] * 100, 0, INPUT)  # of a step that is never finished
    scalings[1].restore(saved)
    for x in steps[3:]:
        first, second = (scaling.cast(x, 0, INPUT) for scaling in scalings)
        assert torch.equal(first.data.view(torch.uint8), second.data.view(torch.uint8))
        for scaling in scalings:
            scaling.end_step()
    for name, tensor in scalings[0].state().items():
        assert torch.equal(tensor, scalings[1].state()[name])
