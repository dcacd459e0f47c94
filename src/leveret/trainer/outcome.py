"""How a training stage ends: the model folder appears whole, then the note that says the stage is done.

    output/
      model/        a Hugging Face directory: weights, tokenizer, chat template, tools
      outcome.json  the identity of the run (see checkpoint.py), its figures and files; written after model/
      metrics.html, metrics.jsonl, xray.html
      checkpoints/  only until then, or the final one with `keep_final_checkpoint`

The same command run again finds `outcome.json` with its own identity and does nothing. With another identity (a
setting or the data changed) it trains anew and replaces the model at the end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from leveret.config import fingerprint
from leveret.console import Console
from leveret.errors import TrainingError
from leveret.model.decoder import Decoder
from leveret.paths import atomic_directory, atomic_write, files_below, free_bytes, sha256_file, sweep_drafts
from leveret.tokenizer.files import Tokenizer
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.trainer.snapshot import Damaged, Manifest
from leveret.trainer.world import World
from leveret.weights.companions import pass_on
from leveret.weights.save import save_model

MODEL = "model"
CHECKPOINTS = "checkpoints"
_OUTCOME = "outcome.json"


def finished_figures(
    output: Path,
    identity: Mapping[str, Any],
    console: Console,
    world: World | None = None,
    *,
    result: str = "model/config.json",
    training: TrainingConfig | None = None,
) -> dict[str, Any] | None:
    """The figures of a finished run with this identity in `output`; None when there is none.

    result: what must be there, or the run is not finished.
    training: how it is asked for now; it warns where that asks for a checkpoint that the run did not keep.
    Of several processes the first one looks, after it is made sure that all have the same identity.
    """
    if world is None or world.size == 1:
        return _finished_figures(output, identity, console, result, training)
    world.refuse_difference({name: fingerprint(value) for name, value in identity.items()})
    return world.agree(_finished_figures(output, identity, console, result, training) if world.is_main else None)


def _finished_figures(
    output: Path, identity: Mapping[str, Any], console: Console, result: str, training: TrainingConfig | None
) -> dict[str, Any] | None:
    if not (output / _OUTCOME).is_file() or not (output / result).is_file():
        return None
    try:
        outcome = json.loads((output / _OUTCOME).read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(outcome, dict) or not isinstance(outcome.get("figures"), dict):
        return None
    if outcome.get("identity") != json.loads(json.dumps(identity)):
        console.info(f"{output} holds a model trained with other settings or data; training anew")
        return None
    if lost := [name for name in outcome.get("files", ()) if not (output / name).is_file()]:
        console.warn(f"the run in {output} was done, but {lost[0]} is gone; training anew")
        return None
    if "kept" in outcome:
        _clear_leftovers(Checkpoints(output / CHECKPOINTS, identity=identity, keep=1, console=console), outcome["kept"])
    if training is not None:
        _warn_of_unkept(output, training, console)
    figures: dict[str, Any] = outcome["figures"]
    return figures


def _warn_of_unkept(output: Path, training: TrainingConfig, console: Console) -> None:
    """Say which checkpoints are asked for that a finished run has not: they are made while it trains."""
    folder = output / CHECKPOINTS
    asked = {"keep_final_checkpoint": training.keep_final_checkpoint, "keep_best": training.keep_best}
    there = {"keep_final_checkpoint": any(folder.glob("step-*")), "keep_best": any(folder.glob("best/step-*"))}
    if lost := [name for name, wanted in asked.items() if wanted and not there[name]]:
        console.warn(
            f"the run in {output} is done and kept no checkpoint, so {' and '.join(lost)} can do nothing now; to train "
            f"again and keep it, delete {output / _OUTCOME} or name another output"
        )


def _clear_leftovers(checkpoints: Checkpoints, kept: Mapping[str, bool]) -> None:
    """Delete what a run that was killed at its very end left behind; not the checkpoints of another run."""
    for folder in checkpoints.saved():
        with contextlib.suppress(Damaged):  # half deleted
            if Manifest.read(folder).identity != checkpoints.identity:
                return
    checkpoints.clear(**kept)


def model_fingerprint(folder: Path) -> str:
    """A hash of what a model folder computes: its config and weights (not its card, which is written later)."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if not any(folder.glob("model*.safetensors")):  # the older form, with its index
        files += sorted(folder.glob("*.bin*"))
    return fingerprint({file.name: sha256_file(file) for file in files if file.is_file()})


def publish(
    model: Decoder,
    tokenizer: Tokenizer,
    output: Path,
    *,
    checkpoints: Checkpoints,
    figures: Mapping[str, Any],
    keep_final_checkpoint: bool = False,
    keep_best: bool = False,
    start: Path | None = None,
    add_files: Callable[[Path], object] | None = None,
    name: str = MODEL,
    save: Callable[[Decoder, Path], None] = save_model,
) -> Path:
    """Write model/ and outcome.json, then delete the checkpoints (but those asked for); the folder of the model.

    Of several processes the first one does it, which has the model.
    start: the model it was trained from, whose licence and ways to sample it keeps.
    add_files: called with the folder before it appears, to put more files in. name, save: another folder than model/,
    and what writes into it what was trained. TrainingError when the disk is full.
    """
    folder = output / name
    if not checkpoints.world.is_main:
        return folder
    try:
        with atomic_directory(folder) as draft:
            save(model, draft)
            tokenizer.save(draft)
            if start is not None:
                pass_on(start, draft)
            if add_files is not None:
                add_files(draft)
        kept = {"keep_newest": keep_final_checkpoint, "keep_best": keep_best}
        outcome = {
            "identity": checkpoints.identity,
            "figures": dict(figures),
            "kept": kept,
            "files": [file.relative_to(output).as_posix() for file in files_below(folder)],
        }
        atomic_write(output / _OUTCOME, json.dumps(outcome, ensure_ascii=False, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"cannot save the model in {folder} ({free_bytes(output) / 1e6:,.0f} MB free): {error}",
            hint="free some space and run the same command again; it goes on from the last checkpoint",
        ) from error
    checkpoints.clear(**kept)
    sweep_drafts(output)
    return folder
