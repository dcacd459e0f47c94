"""Other programs get the numbers of metrics.jsonl, through the functions that they really have."""

import sys
from types import ModuleType

import pytest

from leveret.errors import MissingExtra
from leveret.trainer.metrics import Metrics
from leveret.trainer.reporters import open_reporters


def record(tmp_path, names):
    reporters = open_reporters(names, tmp_path / "run", title="pretrain", identity={"seed": 1})
    metrics = Metrics(tmp_path / "run", title="t", total_steps=4, steps_done=0, reporters=reporters)
    metrics.write(1, loss=2.5, spike=True)
    metrics.write(2, skipped="spike")
    metrics.close(status="done")


@pytest.fixture
def fake(monkeypatch):
    """A module with the three functions of a tracker, which notes how they were called."""

    def install(name):
        module, calls = ModuleType(name), []
        for function in ("init", "log", "finish"):
            setattr(module, function, lambda *args, _name=function, **kwargs: calls.append((_name, args, kwargs)))
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return install


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_a_tracker_gets_numbers_and_steps(tmp_path, fake, name):
    calls = fake(name)
    record(tmp_path, [name])
    (begun, _, settings), *logs, (ended, _, _) = calls
    assert (begun, ended) == ("init", "finish")
    assert settings["project"] == "leveret" and settings["config"] == {"seed": 1}
    assert [(args, kwargs) for _, args, kwargs in logs] == [(({"loss": 2.5, "spike": 1.0},), {"step": 1}),
                                                            (({},), {"step": 2})]  # fmt: skip


def test_a_resumed_run_goes_on_in_the_same_curve_of_wandb(tmp_path, fake):
    calls = fake("wandb")
    for _ in range(2):
        record(tmp_path, ["wandb"])
    first, second = (kwargs for name, _, kwargs in calls if name == "init")
    assert first["id"] == second["id"] and first["resume"] == "allow"


def test_tensorboard_gets_one_scalar_for_each_number(tmp_path, monkeypatch):
    seen = []

    class Writer:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, name, value, step):
            seen.append((name, value, step))

        def close(self):
            seen.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    record(tmp_path, ["tensorboard"])
    assert seen == [str(tmp_path / "run/tensorboard"), ("loss", 2.5, 1), ("spike", 1.0, 1), "closed"]


def test_a_program_that_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtra, match=r"report_to: trackio.*\n.*pip install trackio"):
        record(tmp_path, ["trackio"])
