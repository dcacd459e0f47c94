"""The optimizer step: exact under any cut into micro-batches, and nothing non-finite ever reaches the weights."""

from dataclasses import replace

import pytest
import torch

from leveret.errors import NonFiniteLoss, NothingToTrain
from leveret.kernels.cross_entropy import IGNORED
from leveret.trainer.adamw import AdamW
from leveret.trainer.batches import BatchSource, batch_of
from leveret.trainer.config import TrainingConfig
from leveret.trainer.objective import CausalLoss
from leveret.trainer.step import optimizer_step


def make_source(order, *, rows_per_step=8, micro_batch_rows=1, epochs=1, **more):
    config = TrainingConfig(rows_per_step=rows_per_step, micro_batch_rows=micro_batch_rows, num_epochs=epochs)
    return BatchSource(order, config, rows_in_one_epoch=len(order.rows), **more)


def one_step(model, batches, *, precision=torch.float32, **changes):
    optimizer = AdamW(model, TrainingConfig(max_grad_norm=None, **changes), dtype=precision)
    result = optimizer_step(CausalLoss(model), batches, optimizer, step=0, learning_rate=1e-2)
    return result, optimizer


def all_at_once(batches):
    """The mean loss over every trained token of the step, from whole logits, as a textbook writes it."""

    def loss(model):
        losses = []
        for batch in batches:
            logits = model(batch.input_ids, positions=batch.positions, document_ids=batch.document_ids)
            losses.append(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
                )
            )
        losses = torch.cat(losses)
        return losses.sum() / (losses != 0).sum()

    return loss


@pytest.mark.parametrize("rows", [8, 3])
@pytest.mark.parametrize("micro_batch_rows", [1, 2, 3])
def test_gradients_do_not_depend_on_the_cut_into_micro_batches(new_model, new_order, rows, micro_batch_rows):
    order = new_order(num_rows=rows)
    whole, cut = new_model(), new_model()
    _, once = one_step(whole, make_source(order, micro_batch_rows=8).step(0))
    _, often = one_step(cut, make_source(order, micro_batch_rows=micro_batch_rows).step(0))
    torch.testing.assert_close(often.gradients, once.gradients, rtol=1e-5, atol=1e-7)


def test_the_last_partial_window_is_divided_by_its_own_tokens(new_model, new_order):
    source = make_source(new_order(num_rows=19), rows_per_step=8, micro_batch_rows=2)
    assert source.total_steps == 3
    batches = source.step(2)
    assert [len(batch.keys) for batch in batches] == [2, 1]
    expected = all_at_once(batches)(new_model()).item()
    result, _ = one_step(new_model(), batches, rows_per_step=8, micro_batch_rows=2)  # a whole window has 4
    assert result.loss == pytest.approx(expected, rel=1e-5)
    model = new_model()
    all_at_once(batches)(model).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-4)


def test_packed_rows_have_the_loss_and_gradient_of_their_documents_alone(new_model, new_order):
    row = new_order(documents=3).row(0)
    alone = []
    for document in sorted({*row.document_ids.tolist()} - {-1}):
        single = [array[row.document_ids == document] for array in vars(row).values()]
        alone.append(batch_of([type(row)(*single)], [f"document {document}"]))
    together, packed = one_step(new_model(), [batch_of([row], ["row"])])
    apart, separate = one_step(new_model(), alone)
    assert len(alone) == 3
    assert together.loss == pytest.approx(apart.loss, rel=1e-5)
    torch.testing.assert_close(packed.gradients, separate.gradients, rtol=1e-4, atol=1e-6)


def test_token_weights_weigh_losses_and_the_denominator(new_model, new_order):
    weights = torch.ones(61)
    weights[:30] = 3.0
    source = make_source(new_order(), token_weights=weights)
    batches = source.step(0)
    model = new_model()
    total = torch.zeros(())
    divisor = 0.0
    for batch in batches:
        logits = model(batch.input_ids, positions=batch.positions, document_ids=batch.document_ids)
        losses = torch.nn.functional.cross_entropy(logits[0], batch.targets[0], ignore_index=-100, reduction="none")
        factors = torch.where(batch.targets[0] == IGNORED, 0.0, weights[batch.targets[0].clamp(min=0)])
        total, divisor = total + (losses * factors).sum(), divisor + factors.sum()
    assert one_step(new_model(), batches)[0].loss == pytest.approx((total / divisor).item(), rel=1e-5)


def test_weights_do_not_depend_on_what_the_balance_loss_is_cut_into(new_model, new_order):
    from leveret.model.config import MoeConfig

    order = new_order(num_rows=1)
    order.rows *= 8  # equal micro-batches: the balance loss of each is that of all
    moe = MoeConfig(num_experts=4, experts_per_token=2, router_aux_loss_coef=0.5)
    _, once = one_step(new_model(family="mixtral", moe=moe), make_source(order, micro_batch_rows=8).step(0))
    _, often = one_step(new_model(family="mixtral", moe=moe), make_source(order, micro_batch_rows=1).step(0))
    torch.testing.assert_close(often.gradients, once.gradients, rtol=1e-4, atol=1e-6)
    without = replace(moe, router_aux_loss_coef=0.0)
    _, plain = one_step(new_model(family="mixtral", moe=without), make_source(order).step(0))
    assert not torch.allclose(plain.gradients, once.gradients, rtol=1e-3, atol=1e-5)


def test_a_non_finite_loss_stops_before_the_update_and_names_step_and_rows(new_model, new_order):
    model = new_model()
    source = make_source(new_order(), micro_batch_rows=2)
    batches = source.step(3)
    optimizer = AdamW(model, TrainingConfig(), dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    objective = CausalLoss(model)

    def poisoned(batch):
        return objective(batch) * (float("nan") if batch is batches[1] else 1.0)

    with pytest.raises(NonFiniteLoss, match=r"step 4: the loss is nan in rows toy:26, toy:27;"):
        optimizer_step(poisoned, batches, optimizer, step=3, learning_rate=1e-2)
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.state().items())
    assert optimizer.updates == 0


def test_a_non_finite_gradient_under_a_finite_loss_stops_before_the_update(new_model, new_order):
    model = new_model()
    optimizer = AdamW(model, TrainingConfig(), dtype=torch.float32)
    before = optimizer.masters.clone()

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    objective = CausalLoss(model)
    batches = make_source(new_order()).step(0)
    with pytest.raises(NonFiniteLoss, match=r"gradient norm is (nan|inf) though the loss is finite.*toy:0"):
        optimizer_step(lambda b: Overflow.apply(objective(b)), batches, optimizer, step=0, learning_rate=1e-2)
    assert torch.equal(before, optimizer.masters)


def test_a_step_that_trains_no_token_is_refused(new_model, new_order):
    order = new_order()
    for row in order.rows:
        row.targets[:] = IGNORED
    with pytest.raises(NothingToTrain, match="step 1: none of its tokens is trained"):
        one_step(new_model(), make_source(order).step(0))


def test_bf16_gives_nearly_the_gradient_of_fp32(new_model, new_order):
    batches = make_source(new_order(), micro_batch_rows=4).step(0)
    exact, reference = one_step(new_model(), batches)
    rounded, optimizer = one_step(new_model(), batches, precision=torch.bfloat16)
    assert rounded.loss == pytest.approx(exact.loss, rel=5e-3)
    cosine = torch.nn.functional.cosine_similarity(optimizer.gradients, reference.gradients, dim=0)
    assert cosine > 0.995
