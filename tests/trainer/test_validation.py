"""Validation: the exact mean loss, bits per byte from exact bytes, and no trace left in the run."""

import math
from types import SimpleNamespace

import pytest
import torch

from leveret.errors import DataError
from leveret.tokenizer.train import train_byte_bpe
from leveret.trainer.batches import batch_of
from leveret.trainer.config import TrainingConfig
from leveret.trainer.objective import summed_loss
from leveret.trainer.validation import Validation, byte_lengths


class Rows:
    def __init__(self, order):
        self.order = order

    def __len__(self):
        return len(self.order.rows)

    def row(self, index):
        return self.order.row(index)


@pytest.fixture
def lengths():
    """61 ids of three bytes each, the first of which is special."""
    return SimpleNamespace(vocab_size=61, bytes_of=lambda token, skip_special: b"" if token == 0 else b"abc")


def test_loss_and_bits_per_byte_are_those_of_all_rows_together(new_model, new_order, lengths):
    model, order = new_model(), new_order(num_rows=7)
    batch = batch_of(order.rows, ["x"] * 7)
    loss = summed_loss(model, batch).item()
    config = TrainingConfig(micro_batch_rows=2, rows_per_step=2)
    measured = Validation(model, [Rows(order)], config, lengths)()
    assert measured["validation_loss"] == pytest.approx(loss / batch.trained_tokens, rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(loss / math.log(2) / (3 * batch.trained_tokens), rel=1e-5)


def test_a_limit_takes_rows_evenly_from_all_sources(new_model, new_order, lengths):
    sources = [Rows(new_order(num_rows=10, seed=seed)) for seed in (1, 2)]
    validation = Validation(new_model(), sources, TrainingConfig(evaluate_rows=5), lengths)
    assert [(sources.index(source), row) for source, row in validation.rows] == [(0, 0), (0, 5), (1, 0), (1, 4), (1, 9)]


def test_the_model_s_mode_gradients_and_random_state_are_left_alone(new_model, new_order, lengths):
    model = new_model().train()
    state = torch.get_rng_state()
    Validation(model, [Rows(new_order(num_rows=3))], TrainingConfig(), lengths)()
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_held_out_data_without_a_row_is_refused(new_model, lengths):
    with pytest.raises(DataError, match="no row to measure"):
        Validation(new_model(), [[]], TrainingConfig(), lengths)


def test_bytes_of_tokens_add_up_to_the_bytes_of_the_text():
    text = "naïve 你好，世界 🐇🥕 test"
    tokenizer = train_byte_bpe([text] * 3, vocab_size=280, special_tokens=["<|end|>"])
    lengths = byte_lengths(tokenizer)
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
    assert lengths[tokenizer.id_of("<|end|>")] == 0
