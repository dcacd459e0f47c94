"""A model reference becomes a folder: a local path, a Hugging Face name or a ModelScope name.

| reference           | where it is looked for                                                          |
|---------------------|---------------------------------------------------------------------------------|
| an existing folder  | there, and nowhere else                                                         |
| `owner/name`        | both local caches, then Hugging Face (ModelScope if `USE_MODELSCOPE_HUB=1`)     |
| `hf:owner/name`     | Hugging Face's cache, then Hugging Face                                         |
| `ms:owner/name`     | ModelScope's cache, then ModelScope (by the `modelscope` package)               |

A folder that holds only an adapter stands for that adapter on the model which its adapter_config.json names.

`HF_HUB_OFFLINE=1` keeps every look-up on this machine; `HF_ENDPOINT` names a mirror.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from leveret.config import suggest
from leveret.errors import HubError

_REPOSITORY = re.compile(r"(?:(hf|ms):)?([\w.-]+/[\w.-]+)")
_NOT_WEIGHTS = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf", "original/*"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What is loaded, the first that is there, whole or by its index; a release may have other forms and their indexes."""


def is_repository(reference: str) -> bool:
    """Whether a text can be the name of a model on a hub."""
    return _REPOSITORY.fullmatch(reference) is not None


def resolve_model(reference: str | Path, *, revision: str | None = None) -> Path:
    """The folder that holds the model; fetched first if it is a hub's name and not in a local cache.

    Raises HubError when there is no such folder or the hub cannot be reached, and says what to do.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise HubError(f"{reference} is a file, not a model folder", hint=f"name its folder: {folder.parent}")
    found = _REPOSITORY.fullmatch(str(reference))
    if found is None or str(reference).startswith("."):
        raise HubError(f"there is no folder {reference}", hint=_local_hint(folder))
    hub, repository = found[1], found[2]
    modelscope_first = os.environ.get("USE_MODELSCOPE_HUB", "0").lower() in ("1", "true")
    if hub != "hf" and (cached := _modelscope_cached(repository)):
        return cached
    if hub == "ms" or (hub is None and modelscope_first):
        return _from_modelscope(repository, revision)
    return _from_hugging_face(repository, revision, folder)


def name_of(folder: Path) -> str:
    """What people call the model in a folder: the folder's name; in Hugging Face's cache, where that is a commit, the
    repository's."""
    folder = folder.resolve()
    repository = folder.parent.parent.name if folder.parent.name == "snapshots" else ""
    return repository.rpartition("--")[2] if repository.startswith("models--") else folder.name


def resolve_whole_model(reference: str | Path, *, purpose: str) -> Path:
    """The same for what needs the model's own weights: HubError for a folder with only an adapter."""
    folder = resolve_model(reference)
    if is_adapter(folder):
        raise HubError(
            f"{folder} holds an adapter; {purpose} needs a whole model",
            hint="merge it: in its fine-tuning recipe, `adapter: {merge: true}`, or "
            f'leveret.weights.merged.merge_into_model("{folder}", "merged")',
        )
    return folder


ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def model_under(folder: Path) -> Path:
    """`folder`, or the folder of the model that the adapter in it names. Raises HubError if that is not found."""
    if not is_adapter(folder):
        return folder
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8-sig")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise HubError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}", hint="fetch or write it again") from None
    hint = (
        f'name it under "base_model_name_or_path" in {folder / ADAPTER_CONFIG}, or leveret.load(base, adapter=folder)'
    )
    if not base:
        raise HubError(f"{folder} is an adapter that does not say which model it was trained on", hint=hint)
    try:
        return resolve_model(base)
    except HubError as error:
        raise HubError(f"{folder} is an adapter for {base}: {error.message}", hint=f"{error.hint}; or {hint}") from None


def is_quantized(folder: str | Path) -> bool:
    """Whether the config.json in a folder says that its matrices are quantized; False where there is none."""
    try:
        values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and bool(values.get("quantization_config"))


def _from_hugging_face(repository: str, revision: str | None, folder: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def snapshot(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repository, revision=revision, ignore_patterns=_NOT_WEIGHTS, local_files_only=local_files_only
            )
        )

    try:
        with contextlib.suppress(LocalEntryNotFoundError, OSError):
            cached = snapshot(local_files_only=True)
            if _has_all_weights(cached):
                return cached
        return snapshot(local_files_only=False)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HubError(
            f"{repository} is not a folder here, and Hugging Face did not give it: {_first_line(error)}",
            hint=f"{_local_hint(folder)}; from a mirror: HF_ENDPOINT=https://hf-mirror.com; from ModelScope: "
            f"ms:{repository}; without a network: copy the folder here and give its path",
        ) from None


def _has_all_weights(folder: Path) -> bool:
    """Whether a cached folder is a finished download: the cache says only that it was begun."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return True
        if index.is_file():
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                return False
            return all((folder / shard).is_file() for shard in shards)
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _from_modelscope(repository: str, revision: str | None) -> Path:
    hint = f"copy the folder here and give its path, or try hf:{repository}"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true"):
        raise HubError(f"{repository} is not in ModelScope's cache, and HF_HUB_OFFLINE forbids fetching it", hint=hint)
    try:
        from modelscope import snapshot_download  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        hint = f"pip install modelscope, or {hint}"
        raise HubError("fetching from ModelScope needs the package 'modelscope'", hint=hint) from None
    try:
        return Path(snapshot_download(repository, revision=revision))
    except Exception as error:  # the package documents no error type for a missing repository or network
        raise HubError(f"ModelScope did not give {repository}: {_first_line(error)}", hint=hint) from None


def _modelscope_cached(repository: str) -> Path | None:
    """ModelScope keeps `owner/name` as folders, dots in the name written as `___`."""
    root = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    owner, name = repository.split("/")
    for below in ("models", "hub/models", "hub", ""):
        folder = root / below / owner / name.replace(".", "___")
        if (folder / "config.json").is_file():
            return folder
    return None


def _local_hint(folder: Path) -> str:
    """Name a neighbour that looks like the folder meant, or say what was expected."""
    parent = folder.parent
    if parent.is_dir():
        near = suggest(folder.name, [entry.name for entry in parent.iterdir() if entry.is_dir()])
        if near is not None:
            return f"did you mean {parent / near}?"
        return f"{parent.absolute()} has no folder '{folder.name}'"
    return f"{parent} does not exist either"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
