"""A line of garbage among the texts: the commands a user would type to see it, and to go on without it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from leveret.paths import hash_tree
from leveret.trainer.metrics import read_metrics

POISON = 57
KEYS = [
    "tokenizer=tokenizer", "model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=2",
    "model.num_attention_heads=4", "training.max_steps=60", "training.sequence_length=64", "training.rows_per_step=2",
    "training.micro_batch_rows=2", "training.log_every_steps=1", "training.spike_window=8", "training.precision=fp32",
    "training.checkpoint_every_steps=4", "training.learning_rate=0.01", "training.async_checkpoints=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from leveret.tokenizer.train import train_byte_bpe

    folder = tmp_path_factory.mktemp("poison")
    texts = [f"Story {i}: the hare saw the moon {i % 7} times. 野兔看见了月亮。" for i in range(120)]
    train_byte_bpe(texts, vocab_size=320, special_tokens=["<eos>"], eos_token="<eos>").save(folder / "tokenizer")
    texts[POISON - 1] = "".join(random.Random(0).choices([chr(code) for code in range(0x0600, 0x06FF)], k=120))
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def start(folder, output, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "leveret", "pretrain", "text.jsonl", f"output={output}", *KEYS, *more], cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def finish(process, code=0):
    _, shown = process.communicate(timeout=120)
    assert process.returncode == code, shown
    return " ".join(shown.split())


@pytest.mark.slow
def test_what_the_run_says_about_the_spike_is_enough_to_train_without_it(folder):
    shown = finish(start(folder, "seen"))
    page = re.search(r"see (seen/forensics/step-\d+\.html)", shown)[1]
    shown_keys = re.findall(r"  - &quot;(.*)&quot;", (folder / page).read_text())
    key = f"text.jsonl:{POISON}"
    assert key in shown_keys and len(shown_keys) <= 4
    shown = finish(start(folder, "without", f"exclude_rows=[{key}]"))
    assert "left out 1: named in exclude_rows" in shown
    assert not (folder / "without/forensics").exists()
    shown = finish(start(folder, "typo", f"exclude_rows=[{key.replace('text', 'txet')}]"), code=3)
    assert "did you mean 'text.jsonl:5" in shown


@pytest.mark.slow
def test_rolled_back_and_killed_on_the_way_the_run_ends_in_the_same_model(folder):
    """Killed twice: as soon as the decision is in the journal, and again some steps after the resume."""
    finish(start(folder, "whole", "training.on_spike=rollback"))
    journal = folder / "killed/checkpoints/journal.jsonl"
    for moment in (journal.exists, lambda: len(read_metrics(folder / "killed/metrics.jsonl")) > 40):
        process = start(folder, "killed", "training.on_spike=rollback")
        while not moment():
            assert process.poll() is None, finish(process)
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    shown = finish(start(folder, "killed", "training.on_spike=rollback"))
    assert "resuming after step" in shown
    assert hash_tree(folder / "killed/model") == hash_tree(folder / "whole/model")
    skipped = [
        [line["step"] for line in read_metrics(folder / name / "metrics.jsonl") if line.get("skipped")]
        for name in ("whole", "killed")
    ]
    assert skipped[0] == skipped[1] and len(skipped[0]) >= 2
