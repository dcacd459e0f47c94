"""A launched run whose processes are killed: all end with an error, and the same command ends in the same model.

The command line itself is run, for a training command and for a recipe of two stages that train.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from leveret.paths import hash_tree
from leveret.trainer.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes as Linux does")]
SECONDS = 120
TRAINING = {
    "max_steps": 40, "sequence_length": 64, "rows_per_step": 8, "micro_batch_rows": 1, "learning_rate": 5e-3,
    "checkpoint_every_steps": 5, "log_every_steps": 1, "device": "cpu",
}  # fmt: skip
SHARED = {"sequence_length": 128, "parallel": {"mode": "fsdp"}}
MODEL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts, conversations, a tokenizer, and a recipe of two stages."""
    from leveret.chat.template import builtin_template
    from leveret.tokenizer.train import train_byte_bpe

    folder = tmp_path_factory.mktemp("launch")
    texts = [f"Story {i}: the hare saw the moon {i % 7} times. 野兔看见了月亮。" for i in range(150)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    talks = [
        {"messages": [{"role": "user", "content": f"What saw hare {i}?"}, {"role": "assistant", "content": text}]}
        for i, text in enumerate(texts)
    ]
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)), encoding="utf-8")
    template = builtin_template("hare")
    special = ["<eos>", *template.special_tokens]
    tokenizer = train_byte_bpe(
        texts, vocab_size=320, special_tokens=special, eos_token="<eos>", chat_template=template.source
    )
    tokenizer.save(folder / "tokenizer")
    stages = [
        {"pretrain": {"documents": ["text.jsonl"], "tokenizer": "tokenizer", "model": MODEL, "training": TRAINING}},
        {"finetune": {"model": "@pretrain/model", "data": ["talks.jsonl"], "training": {**TRAINING, **SHARED}}},
    ]  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps({"name": "pair", "stages": stages}), encoding="utf-8")
    return folder


def start(folder, *words, options=("--nproc", "2"), variables=None):
    return subprocess.Popen(
        [sys.executable, "-m", "leveret", "launch", *options, *words], cwd=folder, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})},
    )  # fmt: skip


def finish(process):
    _, shown = process.communicate(timeout=SECONDS)
    return process.returncode, shown


def member(process, rank, *, in_stage):
    """The training process of a rank: the command's own one, or that of a recipe's stage."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if (
                each.environ().get("RANK") == str(rank)
                and ("forkserver" in " ".join(each.parent().cmdline())) == in_stage
            ):
                found.append(each)
    return found[0]


def kill_after(process, rank, metrics, step, *, in_stage=False):
    """kill -9 to a member once a step is recorded; then nothing of the run may be left."""
    until = time.monotonic() + SECONDS
    while not (lines := read_metrics(metrics)) or lines[-1]["step"] < step:
        assert time.monotonic() < until and process.poll() is None, finish(process)
        time.sleep(0.005)
    everyone = psutil.Process(process.pid).children(recursive=True)
    member(process, rank, in_stage=in_stage).send_signal(signal.SIGKILL)
    code, shown = finish(process)
    assert code not in (0, 70), shown
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert not alive
    assert "this is a bug" not in shown
    return shown


def pretrain(output):
    keys = {f"model.{key}": value for key, value in MODEL.items()} | {f"training.{k}": v for k, v in TRAINING.items()}
    return ["pretrain", "text.jsonl", f"output={output}", "tokenizer=tokenizer", *(f"{k}={v}" for k, v in keys.items())]


@pytest.fixture(scope="module")
def unbroken(folder):
    """The hash of the model of two processes that nothing happened to."""
    code, shown = finish(start(folder, *pretrain("whole")))
    assert code == 0, shown
    return hash_tree(folder / "whole/model")


def test_a_training_command_whose_processes_are_killed_ends_in_the_same_model(folder, unbroken):
    for rank, step in ((1, 7), (0, 22)):
        shown = kill_after(start(folder, *pretrain("killed")), rank, folder / "killed/metrics.jsonl", step)
        assert "the same command goes on from the last checkpoint" in shown
    code, shown = finish(start(folder, *pretrain("killed")))
    assert code == 0, shown
    assert "resuming after step" in shown
    assert hash_tree(folder / "killed/model") == unbroken
    assert [line["step"] for line in read_metrics(folder / "killed/metrics.jsonl")] == list(range(1, 41))


def test_with_restarts_the_command_goes_on_by_itself(folder, unbroken):
    process = start(folder, *pretrain("restless"), options=("--nproc", "2", "--restarts", "1"))
    while len(read_metrics(folder / "restless/metrics.jsonl")) < 7:
        assert process.poll() is None, finish(process)
        time.sleep(0.005)
    member(process, 1, in_stage=False).send_signal(signal.SIGKILL)
    code, shown = finish(process)
    assert code == 0 and "starting everything again (1 of 1)" in shown and "resuming after step" in shown, shown
    assert hash_tree(folder / "restless/model") == unbroken


def test_a_recipe_whose_processes_are_killed_ends_in_the_same_models(folder):
    code, shown = finish(start(folder, "recipe.yaml", "output=unbroken"))
    assert code == 0, shown
    for rank, stage in ((1, "pretrain"), (0, "finetune")):
        kill_after(
            start(folder, "recipe.yaml", "output=broken"), rank, folder / f"broken/{stage}/metrics.jsonl", 7,
            in_stage=True,
        )  # fmt: skip
    code, shown = finish(start(folder, "recipe.yaml", "output=broken"))
    assert code == 0, shown
    assert "finetune was interrupted; it goes on" in shown
    for stage in ("pretrain", "finetune"):
        assert hash_tree(folder / f"broken/{stage}/model") == hash_tree(folder / f"unbroken/{stage}/model")


@pytest.mark.parametrize(
    "words", [pretrain("stopped"), ["recipe.yaml", "output=stopped_recipe"]], ids=["pretrain", "recipe"]
)
def test_sigterm_to_the_command_saves_the_same_step_and_the_run_goes_on(folder, words):
    output = folder / ("stopped" if words[0] == "pretrain" else "stopped_recipe/pretrain")
    process = start(folder, *words)
    while not (output / "metrics.jsonl").exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    process.terminate()
    code, shown = finish(process)
    assert code == 143, shown
    assert "Traceback" not in shown and "stopping after step" in shown
    code, shown = finish(start(folder, *words))
    assert code == 0 and "resuming after step" in shown, shown


@pytest.mark.parametrize("who", ["launch", "agent"])
def test_when_what_started_the_processes_is_killed_they_save_and_end(folder, who):
    process = start(folder, *pretrain(f"without_{who}"))
    while len(read_metrics(folder / f"without_{who}/metrics.jsonl")) < 7:
        assert process.poll() is None, finish(process)
        time.sleep(0.005)
    everyone = psutil.Process(process.pid).children(recursive=True)
    (agent,) = [each for each in everyone if "leveret.launch.agent" in each.cmdline()]
    (process if who == "launch" else agent).send_signal(signal.SIGKILL)
    code, shown = finish(process)
    assert code == (1 if who == "agent" else -signal.SIGKILL), shown
    _, alive = psutil.wait_procs(everyone, timeout=30)
    assert not alive
    assert "stopping after step" in shown, shown


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


FAR = """#!/bin/bash
# Stands for ssh: leaves out options and the host, and runs the line as the far shell would.
exec bash -c "${@: -1}"
"""


def test_a_machine_that_dies_ends_the_others_and_the_run_goes_on(folder, unbroken):
    """Two machines of a hostfile, one of them reached through a program in the place of ssh."""
    (folder / "far.sh").write_text(FAR)
    (folder / "far.sh").chmod(0o755)
    hosts = f"{socket.gethostname()} slots=1\nfar-away slots=1  # no such machine\n"
    (folder / "hosts").write_text(hosts)
    options = ("--hostfile", "hosts", "--ssh", "./far.sh", "--master-port", free_port(), "--grace-seconds", "10")
    process = start(folder, *pretrain("lost"), options=options)
    while len(read_metrics(folder / "lost/metrics.jsonl")) < 12:
        assert process.poll() is None, finish(process)
        time.sleep(0.005)
    everyone = psutil.Process(process.pid).children(recursive=True)
    (far,) = [each for each in everyone if "--node-rank=1" in each.cmdline() and each.parent().pid == process.pid]
    os.killpg(far.pid, signal.SIGKILL)  # the machine with all that runs there
    code, shown = finish(process)
    assert code == 1 and "far-away ended with SIGKILL; ending all" in shown, shown
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert not alive

    code, shown = finish(start(folder, *pretrain("lost"), options=options))
    assert code == 0 and "resuming after step" in shown, shown
    assert hash_tree(folder / "lost/model") == unbroken


SRUN = """#!/bin/bash
# Stands for srun: starts the command once for each node of the job, and ends all when one fails.
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do
  SLURM_STEP_ID=0 SLURM_STEP_NODELIST=$SLURM_JOB_NODELIST SLURM_STEP_TASKS_PER_NODE='1(x2)' SLURM_NODEID=$node "$@" &
done
wait -n || { kill $(jobs -p); exit 1; }
wait -n || { kill $(jobs -p); exit 1; }
"""


def test_a_slurm_job_of_two_nodes_trains_one_model(folder, unbroken):
    (folder / "bin").mkdir()
    (folder / "bin/srun").write_text(SRUN)
    (folder / "bin/srun").chmod(0o755)
    job = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "127.0.0.1,localhost",
    }  # fmt: skip
    options = ("--nproc", "1", "--master-port", free_port())
    code, shown = finish(start(folder, *pretrain("slurm"), options=options, variables=job))
    assert code == 0, shown
    assert hash_tree(folder / "slurm/model") == unbroken
