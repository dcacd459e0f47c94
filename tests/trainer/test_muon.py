"""Muon's update is the orthogonal one of the exact decomposition, and the optimizer gives it the right matrices."""

from __future__ import annotations

import pytest
import torch

from leveret.kernels.orthogonal import exact_orthogonalize, orthogonalize
from leveret.trainer.adamw import AdamW
from leveret.trainer.config import TrainingConfig
from leveret.trainer.muon import MOMENTUM, muon_, update_size


def moved_by_muon(
    weights: list[torch.Tensor], gradients: list[torch.Tensor], momenta: list[torch.Tensor], *, lr: float, decay: float
) -> None:
    """One update of matrices of one shape, in place, through flat buffers as the optimizer has them."""
    shape, count = tuple(weights[0].shape), weights[0].numel()
    flat = [torch.cat([each.flatten() for each in tensors]) for tensors in (weights, gradients, momenta)]
    starts = torch.arange(len(weights)) * count
    muon_(flat[0], None, flat[1], flat[2], starts, shape, lr=lr, weight_decay=decay)
    for tensors, moved in ((weights, flat[0]), (momenta, flat[2])):
        for tensor, piece in zip(tensors, moved.split(count), strict=True):
            tensor.copy_(piece.view(shape))


class Block(torch.nn.Module):
    """An embedding, a layer with matrices and a norm, as in a decoder."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed_tokens = torch.nn.Parameter(torch.randn(12, 8, generator=generator))
        self.layers = torch.nn.ParameterDict(
            {
                "square": torch.nn.Parameter(torch.randn(8, 8, generator=generator)),
                "wide": torch.nn.Parameter(torch.randn(8, 20, generator=generator)),
                "other_square": torch.nn.Parameter(torch.randn(8, 8, generator=generator)),
                "norm": torch.nn.Parameter(torch.ones(8)),
            }
        )

    def loss(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(6, 12, generator=generator) @ self.embed_tokens @ self.layers["square"] * self.layers["norm"]
        return torch.tanh(x @ self.layers["other_square"] @ self.layers["wide"]).square().sum()


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
def test_orthogonalize_brings_singular_values_near_one_in_the_same_directions(shape) -> None:
    matrices = torch.randn((3, *shape), generator=torch.Generator().manual_seed(1))
    fast = orthogonalize(matrices)
    assert fast.shape == matrices.shape and fast.dtype == matrices.dtype
    for approximate, matrix in zip(fast, matrices, strict=True):
        values = torch.linalg.svdvals(approximate)
        assert values.min() > 0.3 and values.max() < 1.3
        exact = exact_orthogonalize(matrix)
        cosine = torch.sum(approximate * exact) / (approximate.norm() * exact.norm())
        assert cosine > 0.97


def test_one_update_follows_the_formula_with_the_exact_decomposition() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, gradient = torch.randn(12, 24, generator=generator), torch.randn(12, 24, generator=generator)
    momentum = torch.randn(12, 24, generator=generator)
    expected_momentum = MOMENTUM * momentum + gradient
    direction = exact_orthogonalize(gradient + MOMENTUM * expected_momentum)
    expected = weight * (1 - 0.01 * 0.1) - 0.01 * update_size(12, 24) * direction
    start = weight.clone()
    moved_by_muon([weight], [gradient], [momentum], lr=0.01, decay=0.1)
    torch.testing.assert_close(momentum, expected_momentum)
    moved, wanted = weight - start, expected - start
    assert torch.sum(moved * wanted) / (moved.norm() * wanted.norm()) > 0.97
    assert 0.75 < moved.norm() / wanted.norm() < 1.25


def _trained(optimizer: str, *, clip: float | None = None, ratio: float = 1.0) -> tuple[Block, AdamW]:
    config = TrainingConfig(
        learning_rate=0.01, weight_decay=0.0, optimizer=optimizer, max_grad_norm=clip, matrix_learning_rate_ratio=ratio
    )
    block = Block()
    state = AdamW(block, config, dtype=torch.float32)
    for number in range(3):
        state.start_step()
        block.loss(number).backward()
        state.update(learning_rate=0.01, gradient_norm=float(state.gradient_norm()))
    return block, state


def test_muon_moves_the_matrices_of_the_layers_and_adamw_moves_the_rest() -> None:
    start = Block()
    adamw, _ = _trained("adamw")
    muon, state = _trained("muon")
    assert state.muon_size == 64 + 64 + 192  # two 8 x 8 matrices and one 8 x 20, each on a boundary of 64 numbers
    for name in ("square", "other_square", "wide"):
        moved = muon.layers[name] - start.layers[name]
        assert moved.norm() > 0
        assert not torch.allclose(muon.layers[name], adamw.layers[name])
    assert not torch.equal(muon.layers["norm"], start.layers["norm"])
    assert not torch.equal(muon.embed_tokens, start.embed_tokens)
    sizes = (muon.embed_tokens - start.embed_tokens).abs().max()
    assert sizes <= 0.0301, "AdamW moves an entry by at most the learning rate a step"


def test_no_squares_are_kept_of_the_matrices_and_older_checkpoints_that_have_them_go_on_alike() -> None:
    block, state = _trained("muon")
    assert state.exp_avg_sq.numel() == state.masters.numel() - state.muon_size
    saved = {name: tensor.clone() for name, tensor in state.state().items()}
    older = {**saved, "exp_avg_sq": torch.cat([torch.zeros(state.muon_size), saved["exp_avg_sq"]])}
    moved = []
    for checkpoint in (saved, older):
        state.restore(checkpoint, updates=3, layout=state.layout())
        state.start_step()
        block.loss(3).backward()
        state.update(learning_rate=0.01, gradient_norm=float(state.gradient_norm()))
        moved.append([tensor.clone() for tensor in state.state().values()])
    assert all(torch.equal(one, other) for one, other in zip(*moved, strict=True))
    assert not torch.equal(moved[0][2], saved["exp_avg_sq"])


def test_clipping_reaches_muon_only_through_its_momentum() -> None:
    free, _ = _trained("muon")
    clipped, _ = _trained("muon", clip=1e-3)
    assert not torch.allclose(free.layers["square"], clipped.layers["square"])
    moved = clipped.layers["square"] - Block().layers["square"]
    assert moved.norm() > 0.1 * (free.layers["square"] - Block().layers["square"]).norm()


def test_matrices_of_one_shape_are_updated_as_if_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    weights, gradients = ([torch.randn(8, 8, generator=generator) for _ in range(2)] for _ in range(2))
    momenta = [torch.zeros(8, 8) for _ in range(2)]
    alone = [w.clone() for w in weights]
    for weight, gradient in zip(alone, gradients, strict=True):
        moved_by_muon([weight], [gradient], [torch.zeros(8, 8)], lr=0.1, decay=0.0)
    moved_by_muon(weights, gradients, momenta, lr=0.1, decay=0.0)
    for together, single in zip(weights, alone, strict=True):
        torch.testing.assert_close(together, single, atol=2e-3, rtol=0)


def test_the_ratio_speeds_up_the_matrices_alone() -> None:
    start = Block()
    slow, _ = _trained("muon")
    fast, _ = _trained("muon", ratio=3.0)
    moved = [(block.layers["wide"] - start.layers["wide"]).norm() for block in (slow, fast)]
    assert moved[1] > 1.5 * moved[0]
    assert (fast.embed_tokens - start.embed_tokens).abs().max() <= 0.0301


def test_the_ratio_is_refused_where_nothing_reads_it() -> None:
    with pytest.raises(ValueError, match="read by optimizer: muon only"):
        TrainingConfig(matrix_learning_rate_ratio=2.0)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_matrices_move_as_under_torch_optim_muon(shape, decay) -> None:
    generator = torch.Generator().manual_seed(4)
    mine = torch.randn(shape, generator=generator)
    theirs = torch.nn.Parameter(mine.clone())
    optimizer = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    start, momentum = mine.clone(), torch.zeros(shape)
    # Gradients without tiny singular values: along those, five rounds in bf16 blow rounding up in either version.
    base = exact_orthogonalize(torch.randn(shape, generator=generator))
    for _ in range(4):
        gradient = base + 0.3 * exact_orthogonalize(torch.randn(shape, generator=generator))
        theirs.grad = gradient.clone()
        optimizer.step()
        moved_by_muon([mine], [gradient], [momentum], lr=0.01, decay=decay)
    assert (mine - theirs.detach()).norm() < 0.02 * (theirs.detach() - start).norm()
