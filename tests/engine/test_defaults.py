"""What a caller says goes over what a model says, and None over nothing that it cannot turn off."""

import pytest

from leveret.engine.defaults import with_options
from leveret.engine.request import SamplingParams
from leveret.errors import RequestError

MODEL = SamplingParams(max_tokens=7, temperature=0.3, top_k=20, stop_ids=(2,), logit_bias=((4, 1.0),))


def test_none_turns_off_what_can_be_off_and_leaves_the_rest_as_the_model_says():
    options = {"max_tokens": None, "temperature": None, "stop": None, "stop_ids": None, "logit_bias": None}
    assert with_options(MODEL, {**options, "skip_special_tokens": None, "top_k": None}) == SamplingParams(
        max_tokens=7, temperature=0.3, stop_ids=(2,), logit_bias=((4, 1.0),)
    )


def test_a_name_that_is_none_of_ours_is_refused_whatever_its_value():
    with pytest.raises(RequestError, match="did you mean 'top_k'"):
        with_options(MODEL, {"topk": None})
