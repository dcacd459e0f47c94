"""SIGTERM to the command itself: the step is finished, the state saved, exit code 143; the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from leveret.trainer.metrics import read_metrics


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_terminated_command_saves_and_the_same_command_goes_on(tmp_path, number, code):
    from leveret.tokenizer.train import train_byte_bpe

    text = "A leveret is a young hare. 野兔跑得很快。\n" * 40
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    train_byte_bpe([text], vocab_size=300, special_tokens=["<eos>"], eos_token="<eos>").save(tmp_path / "tokenizer")
    output = tmp_path / "run"
    command = [
        sys.executable, "-m", "leveret", "pretrain", str(tmp_path / "text.txt"), f"output={output}",
        f"tokenizer={tmp_path / 'tokenizer'}", "model.hidden_size=32", "model.intermediate_size=32",
        "model.num_hidden_layers=1", "model.num_attention_heads=4", "training.max_steps=100000",
        "training.sequence_length=32", "training.rows_per_step=2", "training.micro_batch_rows=2",
        "training.checkpoint_every_steps=null",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    saved = []
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        known = len(read_metrics(output / "metrics.jsonl"))
        deadline = time.monotonic() + 60
        while len(read_metrics(output / "metrics.jsonl")) <= known and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, shown = process.communicate(timeout=60)
        assert process.returncode == code, shown
        assert "Traceback" not in shown
        (checkpoint,) = sorted((output / "checkpoints").glob("step-*"))[-1:]
        saved.append(int(checkpoint.name.removeprefix("step-")))
    assert 0 < saved[0] < saved[1]
    assert "resuming after step" in shown
    assert not (output / "model").exists()
