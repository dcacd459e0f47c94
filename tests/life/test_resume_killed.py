"""kill -9 at random moments and at chosen ones (between any two durable writes): the final model has one hash.

The work happens in a process of its own that imports everything once and forks a child for each attempt, as a user's
shell would start the command again and again. A disk that is full from some write on is tried in the same way.
"""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = '''
import errno, json, os, random, signal, sys, time
from pathlib import Path
import torch
from leveret.commands import COMMANDS
from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import LeveretError
from leveret.paths import hash_tree
from leveret.trainer.metrics import read_metrics

folder, seed, verb, settings = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
os.chdir(folder)
command = COMMANDS[verb]
command.load_run()
KNOWN, UNKNOWN = 3, 70

def attempt(output, *, seconds=None, writes=None, full=None):
    """Run in a child; kill it after some seconds, or as it begins its n-th flush to the disk, or let that and all
    later ones find the disk full. Its exit status."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        flush, count = os.fsync, [0]
        def counting(handle):
            count[0] += 1
            if count[0] == writes:
                os.kill(os.getpid(), signal.SIGKILL)
            if full is not None and count[0] >= full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(handle)
        os.fsync = counting
        try:
            command.execute(parse_config(command.load_config(), {**settings, "output": output}, source="test"),
                            Console(quiet=True, log=Path("log")))
        except LeveretError as error:
            print(error.message, file=sys.stderr)
            os._exit(KNOWN)
        except BaseException as error:
            print(f"{output}, full from write {full}: {error!r}", file=sys.stderr, flush=True)
            os._exit(UNKNOWN)
        Path("writes").write_text(str(count[0]))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

began = time.monotonic()
assert attempt("whole") == 0
duration = time.monotonic() - began
writes = int(Path("writes").read_text())
chosen = random.Random(seed)
deaths, told = 0, []
for moment in [chosen.uniform(0.02, duration) for _ in range(2)]:
    deaths += attempt("timed", seconds=moment) == signal.SIGKILL
for number in chosen.sample(range(1, writes), 4):
    deaths += attempt("counted", writes=number) == signal.SIGKILL
for number in chosen.sample(range(1, writes), 4):
    told.append(os.waitstatus_to_exitcode(attempt("filled", full=number)))
OUTPUTS = ("whole", "timed", "counted", "filled")
for output in OUTPUTS[1:]:
    assert attempt(output) == 0
print(json.dumps({
    "deaths": deaths,
    "told": told,
    "models": [[hash_tree(made) for made in sorted((folder / output).iterdir()) if made.name in ("adapter", "model")]
               for output in OUTPUTS],
    "steps": [[line["step"] for line in read_metrics(folder / output / "metrics.jsonl")] for output in OUTPUTS],
    "left": [sorted(entry.name for entry in (folder / output).iterdir()) for output in OUTPUTS],
}))
'''
TRAINING = {
    "max_steps": 12, "sequence_length": 64, "rows_per_step": 4, "micro_batch_rows": 4, "learning_rate": 5e-3,
    "checkpoint_every_steps": 2, "log_every_steps": 3,
}  # fmt: skip
PRETRAIN = {
    "documents": ["text.jsonl", {"path": "more.jsonl", "weight": 0.5}],
    "tokenizer": "base",
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "training": TRAINING,
}
FINETUNE = {
    "model": "base", "data": ["chats.jsonl", {"path": "more_chats.jsonl", "weight": 2.0}], "template": "chatml",
    "neftune": 5.0, "bpe_dropout": 0.1,
    "training": {**TRAINING, "sequence_length": 96},
}  # fmt: skip
CASES = {
    "pretraining on a mixture": ("pretrain", PRETRAIN),
    "checkpoints written beside the training": (
        "pretrain", {**PRETRAIN, "training": {**TRAINING, "async_checkpoints": True, "checkpoint_every_steps": 1}},
    ),
    "fine-tuning with noise on packed samples of a mixture": ("finetune", FINETUNE),
    "an adapter with dropout, merged at the end": (
        "finetune", {**FINETUNE, "adapter": {"rank": 4, "dropout": 0.2, "merge": True}},
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Texts, conversations, a tokenizer, and a small model to fine-tune."""
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.tokenizer.train import train_byte_bpe
    from leveret.weights.save import save_model

    texts = [f"Story {i}: the hare saw the moon {i % 7} times. 野兔看见了月亮。" for i in range(120)]
    talks = [
        {"messages": [{"role": "user", "content": f"Story {i}?"}, {"role": "assistant", "content": text[: 20 + i % 9]}]}
        for i, text in enumerate(texts)
    ]
    records = {
        "text": [{"text": text} for text in texts[:90]], "more": [{"text": text} for text in texts[90:]],
        "chats": talks[:90], "more_chats": talks[90:],
    }  # fmt: skip
    for name, lines in records.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    tokenizer = train_byte_bpe(texts, vocab_size=300, special_tokens=["<eos>"], eos_token="<eos>")
    model = Decoder(
        ModelConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, eos_token_id=tokenizer.eos_id,
        )
    )  # fmt: skip
    init_weights(model, 0)
    save_model(model, tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children made with fork")
@pytest.mark.parametrize("case", CASES)
def test_killed_anywhere_and_started_again_ends_in_the_same_model(folder, case):
    verb, settings = CASES[case]
    seed = int.from_bytes(os.urandom(4), "little")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(seed), verb, json.dumps(settings)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["deaths"] > 0, f"seed {seed}: nothing was killed"
    assert 3 in found["told"] and {*found["told"]} <= {0, 3}, f"seed {seed}: {found}\n{done.stderr}"
    assert found["models"] == [found["models"][0]] * 4, f"seed {seed}: {found}"
    assert found["steps"] == [[1, 3, 6, 9, 12]] * 4, f"seed {seed}: {found}"
    assert all(left == found["left"][0] for left in found["left"]), f"seed {seed}: {found}"
