"""Several processes as one: sums, decisions, waiting, and what is said when a peer is gone."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from leveret.errors import ConfigError, TrainingError
from leveret.ranks import Ranks
from leveret.trainer.config import TrainingConfig
from leveret.trainer.world import World, device_of, joined, naming_the_lost

CONFIG = TrainingConfig(device="cpu")


def everything():
    """What each member of a group gets."""
    with joined(CONFIG) as world:
        rank = world.rank
        tensor = torch.full((3,), float(rank + 1))
        world.sum_(tensor)
        return {
            "rank": rank, "size": world.size, "main": world.is_main, "sum": world.sum(rank + 1, 0.5),
            "largest": world.largest(-rank), "agree": world.agree({"from": rank}),
            "gather": world.gather([rank] * rank), "tensor": tensor.tolist(),
            "precise": world.sum(2.0**40 + 1 if rank else 0.25),
        }  # fmt: skip


def test_members_count_together_and_process_0_decides(group):
    for rank, found in enumerate(group("test_world.everything", 3)):
        assert found == {
            "rank": rank, "size": 3, "main": rank == 0, "sum": [6.0, 1.5], "largest": 0.0, "agree": {"from": 0},
            "gather": [[], [1], [2, 2]], "tensor": [6.0] * 3, "precise": [2.0**41 + 2.25],
        }  # fmt: skip


@pytest.mark.parametrize("processes", [0, 1])
def test_alone_everything_is_as_given(group, processes):
    (found,) = group("test_world.everything", processes)
    assert found == {
        "rank": 0, "size": 1, "main": True, "sum": [1, 0.5], "largest": 0, "agree": {"from": 0}, "gather": [[]],
        "tensor": [1.0] * 3, "precise": [0.25],
    }  # fmt: skip


def waiting(place):
    """Process 0 is late; all write down when they came by."""
    with joined(CONFIG) as world:
        for turn in range(2):
            with world.main_first():
                if world.is_main:
                    time.sleep(0.3)
                    Path(place, f"made-{turn}").touch()
                seen = Path(place, f"made-{turn}").exists()
            assert seen
        return seen


def test_the_others_find_what_process_0_has_made(group, tmp_path):
    assert group("test_world.waiting", 3, place=str(tmp_path)) == [True] * 3


def differing():
    with joined(CONFIG) as world:
        world.refuse_difference({"data": "same", "tokenizer": 7})
        with pytest.raises(TrainingError) as caught:
            world.refuse_difference({"data": "same", "tokenizer": 7 if world.rank < 2 else 8})
        return caught.value.message


def test_what_differs_is_refused_by_name_in_all(group):
    assert group("test_world.differing", 3) == ["process 2 has another tokenizer than process 0"] * 3


def bereft(number):
    """Process 1 is gone in the middle; what process 0 says then."""
    with joined(CONFIG) as world:
        world.sum(1.0)
        if world.rank == 1:
            os.kill(os.getpid(), number)
        try:
            world.sum(1.0)
        except TrainingError as error:
            return error.message, error.hint
        finally:
            if world.is_main:  # the way out of the block would wait for the other
                world._store = None


def test_a_peer_that_is_killed_is_named_as_gone(groups, tmp_path):
    codes, returned = groups.run("test_world.bereft", 2, tmp_path, number=signal.SIGKILL)
    assert codes == [0, signal.SIGKILL], returned[0]
    message, hint = returned[0]
    assert "another process of this run is gone" in message and "the same command goes on" in hint


def hanging():
    """Process 1 hangs; how long process 0 waits for it, and what it says then."""
    began = time.monotonic()
    with joined(TrainingConfig(device="cpu", parallel={"timeout_minutes": 0.02})) as world:
        world.sum(1.0)
        if world.rank == 1:
            time.sleep(4)
            os._exit(0)
        try:
            world.sum(1.0)
        except TrainingError as error:
            return error.message, time.monotonic() - began
        finally:
            world._store = None


def test_a_peer_that_hangs_is_given_up_after_the_timeout(groups, tmp_path):
    codes, returned = groups.run("test_world.hanging", 2, tmp_path)
    assert codes == [0, 0], returned[0]
    message, seconds = returned[0]
    assert "cannot be reached" in message and 1 < seconds < 4


def test_only_what_a_lost_peer_causes_is_renamed():
    with pytest.raises(RuntimeError, match="shapes"), naming_the_lost():
        raise RuntimeError("shapes do not match")
    with pytest.raises(TrainingError, match="is gone"), naming_the_lost():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc] Connection reset by peer [127.0.0.1]:3")


def test_the_device_of_each_process(monkeypatch):
    ranks = Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4, address="a", port=1)
    assert device_of("cpu", ranks) == torch.device("cpu") == device_of("cpu", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of("auto", ranks) == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds no such device"):
        device_of("cuda", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of("auto", ranks) == torch.device("cuda", 1)
    assert device_of("cuda", None) == torch.device("cuda", 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"process 5 of 8 is number 1 on its machine, which has 1 accelerators"):
        device_of("auto", ranks)


def test_a_rank_without_the_other_variables_is_an_error():
    assert Ranks.from_environment({"RANK": "0", "WORLD_SIZE": "2"}) is None  # not torchrun's
    with pytest.raises(ConfigError, match="LOCAL_RANK"):
        Ranks.from_environment({"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"})


def test_a_world_of_one_belongs_to_no_group():
    world = World(torch.device("cpu"))
    assert world.is_main and not world.is_group
    with world.main_first():
        pass
