"""The books an engine keeps of its models: numbers, who is needed still, and whether one has changed."""

from __future__ import annotations

import torch

from leveret.engine.models import EngineModels, fingerprint
from leveret.engine.request import Request
from leveret.engine.row import Row
from leveret.model.decoder import Decoder

from .conftest import random_decoder, tiny_config


def a_model() -> Decoder:
    return random_decoder(tiny_config(97))


def test_a_number_is_never_given_twice_and_a_model_stays_while_a_row_needs_it() -> None:
    models = EngineModels(a_model())
    one, two = models.add(a_model()), models.add(a_model())
    assert (one, two) == (1, 2) and set(models.by_number) == {0, 1, 2}
    models.give_up(one)
    assert not models.serves(one) and models.serves(two)
    before = models.by_number
    models.let_go([Row(Request(prompt_ids=(1,)), model=one)])
    assert models.by_number is before
    models.let_go([Row(Request(prompt_ids=(1,)), model=two)])
    assert set(models.by_number) == {0, 2} and models.add(a_model()) == 3


def test_changes_are_seen_in_those_that_were_looked_at() -> None:
    own = a_model()
    models = EngineModels(own)
    models.look(again=True)
    number = models.add(a_model())
    assert not models.changed()
    with torch.no_grad():
        own.norm.weight.mul_(2)
        models.by_number[number].norm.weight.mul_(2)
    models.look(again=False)  # at the new one
    assert models.changed()
    models.look(again=True)
    assert not models.changed()


def test_a_fingerprint_changes_with_weights_modules_hooks_and_mode() -> None:
    model = random_decoder(tiny_config(97))
    seen = [fingerprint(model)]
    assert fingerprint(model) == seen[0]
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight.mul_(2)
    seen.append(fingerprint(model))
    handle = model.layers[1].register_forward_hook(lambda *_: None)
    seen.append(fingerprint(model))
    handle.remove()
    model.layers[0].mlp.up_proj = torch.nn.Linear(32, 48, bias=False)
    seen.append(fingerprint(model))
    seen.append(fingerprint(model.train()))
    assert len(set(seen)) == 5
