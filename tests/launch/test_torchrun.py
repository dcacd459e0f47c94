"""The commands of a launch, word for word."""

import os
import sys

import pytest

from leveret.console import Console
from leveret.errors import ConfigError, DataError, TrainingError
from leveret.launch import run as running
from leveret.launch import torchrun as module
from leveret.launch.config import LaunchConfig
from leveret.launch.run import inner_words, resolve, run
from leveret.launch.torchrun import starts_of

TORCHRUN = (sys.executable, "-m", "leveret.launch.agent")
LEVERET = ("-m", "leveret", "run", "recipe.yaml", "seed=1")
INNER = ["run", "recipe.yaml", "seed=1"]


def config(**keys):
    return LaunchConfig(words=("recipe.yaml", "seed=1"), **keys)


@pytest.fixture
def hostfile(tmp_path, monkeypatch):
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 slots=8\nme@10.0.0.2 slots=4\n")
    monkeypatch.setattr(module, "is_here", lambda machine: machine.address == "10.0.0.1")
    monkeypatch.chdir(tmp_path)
    return path


def test_one_machine():
    (start,) = starts_of(config(nproc=4), INNER, {"OMP_NUM_THREADS": "3"})
    assert start.arguments == (*TORCHRUN, "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=4", *LEVERET)
    assert start.environment == {}


def test_the_cores_are_shared_out_unless_the_user_has_said_how():
    (start,) = starts_of(config(nproc=2), INNER, {})
    assert start.environment == {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // 2))}


def test_without_a_number_there_is_a_process_for_each_accelerator(monkeypatch):
    monkeypatch.setattr(module, "count_accelerators", lambda environment: 3)
    assert "--nproc-per-node=3" in starts_of(config(), INNER, {})[0].arguments


def test_a_hostfile_starts_here_and_over_ssh_and_honors_slots(hostfile):
    here, there = starts_of(
        config(hostfile=hostfile), INNER, {"NCCL_DEBUG": "a b", "SECRET": "x", "OMP_NUM_THREADS": "1"}
    )
    group = ("--nnodes=2", "--node-rank={}", "--nproc-per-node={}", "--master-addr=10.0.0.1", "--master-port=29500")
    assert here.arguments == (*TORCHRUN, group[0], "--node-rank=0", "--nproc-per-node=8", *group[3:], *LEVERET)
    *ssh, host, line = there.arguments
    assert ssh[0] == "ssh" and "BatchMode=yes" in ssh and host == "me@10.0.0.2"
    words = " ".join((*TORCHRUN, group[0], "--node-rank=1", "--nproc-per-node=4", *group[3:], *LEVERET))
    assert line == f"cd {hostfile.parent} && exec env 'NCCL_DEBUG=a b' OMP_NUM_THREADS=1 {words}"


@pytest.mark.parametrize("first", ["localhost", "me@127.0.0.1", "::1"])
def test_a_first_machine_that_the_others_would_take_for_themselves_is_refused(tmp_path, monkeypatch, first):
    path = tmp_path / "hosts"
    path.write_text(f"{first} slots=1\n10.0.0.2 slots=1\n")
    monkeypatch.setattr(module, "is_here", lambda machine: machine.address != "10.0.0.2")
    with pytest.raises(ConfigError, match=rf"hosts.* first machine {first}.* 10\.0\.0\.2 would take for itself"):
        starts_of(config(hostfile=path), INNER, {})
    monkeypatch.setattr(module, "is_here", lambda machine: True)
    assert len(starts_of(config(hostfile=path), INNER, {})) == 2


def test_nproc_is_above_slots_and_ssh_may_have_options(hostfile):
    here, there = starts_of(config(hostfile=hostfile, nproc=2, ssh="ssh -p 99", master_port=1234), INNER, {})
    assert "--nproc-per-node=2" in here.arguments and "--master-port=1234" in here.arguments
    assert there.arguments[:3] == ("ssh", "-p", "99") and "--nproc-per-node=2" in there.arguments[-1]


def test_in_the_script_of_a_slurm_job_srun_starts_this_command_on_each_node():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_GPUS_ON_NODE": "8"}
    (start,) = starts_of(config(), INNER, job)
    assert start.arguments == (
        "srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", sys.executable, "-m",
        "leveret", "launch", "--nproc=8", "--master-port=29500", "--grace-seconds=30", *INNER,
    )  # fmt: skip
    step = {**job, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[1-2]", "SLURM_NODEID": "1"}
    (start,) = starts_of(config(nproc=8), INNER, step)
    assert start.arguments[3:8] == (
        "--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=gpu1", "--master-port=29500",
    )  # fmt: skip


def test_a_slurm_job_of_one_node_needs_no_srun():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu1", "SLURM_GPUS_ON_NODE": "8"}
    (start,) = starts_of(config(), INNER, job)
    assert start.arguments[3:6] == ("--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=8")


def test_a_recipe_is_run_and_training_commands_are_taken_as_they_are():
    assert inner_words(("recipe.yaml", "seed=1")) == INNER
    assert inner_words(("pretrain", "base.yaml")) == ["pretrain", "base.yaml"]
    with pytest.raises(ConfigError, match=r"did you mean finetune\?"):
        inner_words(("finetun",))
    with pytest.raises(ConfigError, match="neither a recipe"):
        inner_words(("serve", "model"))


@pytest.mark.parametrize("act", [lambda config: run(config, None), resolve])
def test_a_wrong_recipe_is_told_before_anything_starts_or_is_printed(tmp_path, act):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages:\n  - pretrain: {documents: [text.txt], tokenizer: here, max_step: 3}\n")
    with pytest.raises(ConfigError, match="max_step"):
        act(LaunchConfig(words=(str(recipe), "until=pretrain"), nproc=2))


@pytest.mark.parametrize("ssh", ['ssh "-p 22', " "])
def test_an_ssh_that_is_no_command_is_refused(ssh):
    with pytest.raises(ValueError, match="ssh"):
        config(ssh=ssh)


def test_the_plan_can_be_printed(hostfile):
    hostfile.with_name("recipe.yaml").write_text("stages:\n  - quantize: {model: models/tiny}\n")
    starts = resolve(config(hostfile=hostfile))["starts"]
    assert [start["machine"] for start in starts] == ["10.0.0.1", "me@10.0.0.2"]
    assert "--node-rank=1" in starts[1]["command"]


@pytest.mark.parametrize(
    ("code", "error", "attempts"),
    [(1, TrainingError, 3), (2, ConfigError, 1), (3, DataError, 1), (-9, TrainingError, 3)],
)
def test_what_would_fail_again_is_not_started_again(monkeypatch, code, error, attempts):
    made = []
    monkeypatch.setattr(running, "run_together", lambda starts, **_: (made.append(starts), (code, None))[1])
    with pytest.raises(error) as caught:
        run(LaunchConfig(words=("pretrain", "text.txt"), nproc=2, restarts=2), Console(quiet=True))
    assert len(made) == attempts
    assert ("goes on from the last checkpoint" in str(caught.value)) == (attempts == 3)
    assert caught.value.exit_code == (code if code > 0 else 1)
