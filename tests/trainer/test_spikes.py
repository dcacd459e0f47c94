"""The spike detector: what stands out, what does not, and that it goes on where it was."""

import json
import random

import pytest

from leveret.trainer.spikes import FEWEST, SpikeDetector


def noisy(count, level=3.0, spread=0.05, seed=0):
    chosen = random.Random(seed)
    return [level + chosen.gauss(0, spread) for _ in range(count)]


def make(window=64, threshold=8.0):
    return SpikeDetector(window=window, threshold=threshold)


def found(losses, **settings):
    detector = make(**settings)
    return [step for step, loss in enumerate(losses) if detector.see(loss)]


def test_one_loss_far_above_the_others_is_a_spike_and_says_what_was_typical():
    detector = make()
    for loss in noisy(40):
        assert detector.see(loss) is None
    spike = detector.see(4.0)
    assert spike.loss == 4.0
    assert spike.typical == pytest.approx(3.0, abs=0.05)
    assert spike.typical < spike.limit < 4.0


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_a_falling_loss_are_not_spikes(seed):
    assert found(noisy(500, seed=seed)) == []
    falling = [2 + 7 * 0.97**step + noise for step, noise in enumerate(noisy(300, level=0, spread=0.1, seed=seed))]
    assert found(falling) == []


def test_a_run_whose_loss_hardly_varies_does_not_cry_wolf():
    assert found([3.0] * 30 + [3.1] + [3.0] * 10) == []
    assert found([0.001] * 30 + [0.05] + [0.001] * 10) == []
    assert found([3.0] * 30 + [3.5]) == [30]


def test_a_spike_is_told_once_however_long_it_lasts_and_again_after_calm():
    losses = noisy(40) + [6.0] * 10 + noisy(40, seed=1) + [6.0]
    assert found(losses) == [40, 90]


def test_a_lasting_rise_becomes_the_typical_loss():
    assert found(noisy(64) + noisy(200, level=5.0, seed=1)) == [64]


def test_the_first_losses_are_never_spikes():
    assert found([3.0] * (FEWEST - 1) + [100.0]) == []
    assert found([3.0] * FEWEST + [100.0]) == [FEWEST]
    assert found([3.0] * 4 + [100.0], window=4) == [4]


def test_the_threshold_and_the_window_decide():
    losses = [*noisy(64), 3.4, *noisy(30, seed=1)]
    assert found(losses, threshold=4.0) == [64]
    assert found(losses, threshold=20.0) == []
    rise = [10.0] * 32 + [3.0] * 20 + [9.0]
    assert found(rise, window=64) == []
    assert found(rise, window=16) == [52]


@pytest.mark.parametrize("cut", [5, 40, 41, 45])
def test_a_detector_that_is_stored_and_restored_sees_the_same(cut):
    losses = [*noisy(40), 6.0, 6.0, *noisy(20, seed=1), 7.0]
    detector, seen = make(), []
    for step, loss in enumerate(losses):
        if step == cut:
            state = json.loads(json.dumps(detector.state()))
            detector = make()
            detector.restore(state)
        if (spike := detector.see(loss)) is not None:
            seen.append((step, spike.limit))
    whole = make()
    judged = [(step, whole.see(loss)) for step, loss in enumerate(losses)]
    assert seen == [(step, spike.limit) for step, spike in judged if spike]
