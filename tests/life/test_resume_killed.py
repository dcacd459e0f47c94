"""kill -9 at random moments and at chosen ones (between any two durable writes): the final model has one hash.

The work happens in a process of its own that imports everything once and forks a child for each attempt, as a user's
shell would start the command again and again.
"""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = '''
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from leveret.config import parse_config
from leveret.console import Console
from leveret.paths import hash_tree
from leveret.pretrain.config import PretrainConfig
from leveret.pretrain.run import run
from leveret.trainer.metrics import read_metrics

folder = Path(sys.argv[1])
seed = int(sys.argv[2])

def config(output):
    return parse_config(PretrainConfig, {
        "output": str(folder / output),
        "documents": [str(folder / "text.jsonl")],
        "tokenizer": str(folder / "tokenizer"),
        "model": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "training": {"max_steps": 12, "sequence_length": 64, "rows_per_step": 4, "micro_batch_rows": 4,
                     "learning_rate": 5e-3, "checkpoint_every_steps": 2, "log_every_steps": 3},
    }, source="test")

def attempt(output, *, seconds=None, writes=None):
    """Run in a child; kill it after some seconds, or as it begins its n-th flush to the disk. Its exit status."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        flush, count = os.fsync, [0]
        def counting(handle):
            count[0] += 1
            if count[0] == writes:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(handle)
        os.fsync = counting
        run(config(output), Console(quiet=True))
        Path(folder / "writes").write_text(str(count[0]))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

began = time.monotonic()
assert attempt("whole") == 0
duration = time.monotonic() - began
writes = int((folder / "writes").read_text())
chosen = random.Random(seed)
deaths = 0
for moment in [chosen.uniform(0.02, duration) for _ in range(2)]:
    deaths += attempt("timed", seconds=moment) == signal.SIGKILL
for number in chosen.sample(range(1, writes), 4):
    deaths += attempt("counted", writes=number) == signal.SIGKILL
for output in ("timed", "counted"):
    assert attempt(output) == 0
print(json.dumps({
    "deaths": deaths,
    "models": [hash_tree(folder / output / "model") for output in ("whole", "timed", "counted")],
    "steps": [[line["step"] for line in read_metrics(folder / output / "metrics.jsonl")]
              for output in ("whole", "timed", "counted")],
    "left": [sorted(entry.name for entry in (folder / output).iterdir()) for output in ("whole", "timed", "counted")],
}))
'''


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children made with fork")
def test_killed_anywhere_and_started_again_ends_in_the_same_model(tmp_path):
    from leveret.tokenizer.train import train_byte_bpe

    texts = [f"Story {i}: the hare saw the moon {i % 7} times. 野兔看见了月亮。" for i in range(120)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train_byte_bpe(texts, vocab_size=300, special_tokens=["<eos>"], eos_token="<eos>").save(tmp_path / "tokenizer")
    seed = int.from_bytes(os.urandom(4), "little")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(seed)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["deaths"] > 0, f"seed {seed}: nothing was killed"
    assert len(set(found["models"])) == 1, f"seed {seed}: {found}"
    assert found["steps"] == [[1, 3, 6, 9, 12]] * 3, f"seed {seed}: {found}"
    whole, timed, counted = found["left"]
    assert whole == timed == counted, f"seed {seed}: {found}"
