"""adapter_config.json in peft's layout, read strictly: what is not known and may change the numbers is refused.

    r, lora_alpha, lora_dropout, use_rslora, use_dora     what the low-rank changes are like (model/lora.py)
    rank_pattern, alpha_pattern                           exceptions, by endings of names
    target_modules                                        names, endings of names, or one regular expression
    modules_to_save                                       modules trained whole, saved beside the changes
    trainable_token_indices                               rows of the embedding and the head (model/token_rows.py)
    base_model_name_or_path                               the model underneath

Some ways to initialize (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) begin by changing the model underneath, so such an adapter
means nothing beside the original; peft converts them on request, and here they are refused until it has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leveret.errors import ConfigError, WeightsError
from leveret.model.lora import LoraSettings
from leveret.weights.safetensors import read_json

CONFIG = "adapter_config.json"

READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
        "target_modules", "modules_to_save", "trainable_token_indices", "base_model_name_or_path",
        "init_lora_weights", "bias")  # fmt: skip

METADATA = frozenset({
    "alora_invocation_string", "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
})  # fmt: skip
"""Fields that say nothing that the tensors and the fields above do not."""

HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the model underneath alone."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What adapter_config.json says."""

    lora: LoraSettings
    """Of all changes but the exceptions."""
    targets: str | tuple[str, ...]
    """A regular expression for whole names, or endings of names."""
    base: str | None = None
    """The model underneath: a folder or a hub's name."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Exceptions to the rank, by patterns of the ends of names."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Exceptions to alpha."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole, by name or ending."""
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Rows that are trained, by the module's name or ending."""
    ties_saved: bool = False
    """Whether the saved embedding and head are one and stay one; peft asks to be told."""
    whole_rule: bool = True
    """Whether `targets` says it all; False where layers are chosen or modules excluded by other fields."""

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """The file in `folder`; ConfigError names the fields that cannot be followed."""
        file = folder / CONFIG
        if not file.is_file():
            raise WeightsError(f"{folder} is no adapter folder: it has no {CONFIG}", hint="check the path")
        values = read_json(file)
        if wrong := _refused(values):
            raise ConfigError(f"{file}: {'; '.join(wrong)}", hint="merge the adapter with peft, and load the result")
        targets, chosen = values.get("target_modules"), values.get("trainable_token_indices") or {}
        return cls(
            lora=LoraSettings(
                rank=values["r"],
                alpha=values["lora_alpha"],
                dropout=values.get("lora_dropout") or 0.0,
                rslora=bool(values.get("use_rslora")),
                dora=bool(values.get("use_dora")),
            ),
            targets=targets if isinstance(targets, str) else tuple(targets or ()),
            base=values.get("base_model_name_or_path"),
            ranks=values.get("rank_pattern") or {},
            alphas=values.get("alpha_pattern") or {},
            modules_to_save=tuple(values.get("modules_to_save") or ()),
            token_ids={"embed_tokens": tuple(chosen)} if isinstance(chosen, list)
            else {name: tuple(ids) for name, ids in chosen.items()},
            whole_rule=not any(values.get(key) for key in ("exclude_modules", "layers_to_transform")),
        )  # fmt: skip

    def settings_of(self, module: str) -> LoraSettings:
        """What the change of one module is like, by its name in the files."""
        rank, alpha = _exception(self.ranks, module), _exception(self.alphas, module)
        return replace(self.lora, rank=int(rank or self.lora.rank), alpha=self.lora.alpha if alpha is None else alpha)

    def to_json(self) -> str:
        """The file's content."""
        values = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": self.lora.dropout,
            "use_rslora": self.lora.rslora,
            "use_dora": self.lora.dora,
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": dict(self.alphas),
            "target_modules": self.targets if isinstance(self.targets, str) else list(self.targets),
            "modules_to_save": list(self.modules_to_save) or None,
            "ensure_weight_tying": self.ties_saved,
            "trainable_token_indices": {name: list(ids) for name, ids in self.token_ids.items()} or None,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _refused(values: Mapping[str, Any]) -> list[str]:
    """What cannot be followed, in words."""
    kind = values.get("peft_type")
    if kind != "LORA":
        return [f"peft_type is {kind!r}, only LORA and PREFIX_TUNING are known"]
    wrong = [f"{key} is missing" for key in ("r", "lora_alpha") if not _is_number(values.get(key))]
    if values.get("bias", "none") != "none":
        wrong.append(f"bias is {values['bias']!r}: biases are not trained here, only 'none' is known")
    if (start := values.get("init_lora_weights", True)) not in HARMLESS_STARTS:
        wrong.append(
            f"init_lora_weights is {start!r}, which changes the model underneath: save the adapter with peft's "
            "path_initial_model_for_weight_conversion"
        )
    for key, value in values.items():
        if key not in READ and key not in METADATA and value not in (None, False, {}, []):
            wrong.append(f"{key} = {value!r} is unknown and may change the numbers")
    return wrong


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _exception(patterns: Mapping[str, float], module: str) -> float | None:
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return None
