"""A reference is a local folder, a cached model, or an error that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret.errors import HubError
from leveret.hub import name_of, resolve_model


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches and no network; huggingface_hub read its settings when it was imported, so they are set there."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.delenv("USE_MODELSCOPE_HUB", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


def test_an_existing_folder_is_itself(offline: Path) -> None:
    model(offline / "runs/tiny")
    assert resolve_model("runs/tiny") == Path("runs/tiny")


def test_a_misspelt_folder_names_its_neighbour(offline: Path) -> None:
    model(offline / "runs/demo/pretrain")
    with pytest.raises(HubError, match="did you mean runs/demo/pretrain"):
        resolve_model("runs/demo/pretrian")
    with pytest.raises(HubError, match=r"there is no folder \./tiny"):
        resolve_model("./tiny")


def test_a_file_is_not_a_model(offline: Path) -> None:
    model(offline / "tiny")
    with pytest.raises(HubError, match="name its folder: tiny"):
        resolve_model("tiny/config.json")


def test_models_in_the_local_caches_need_no_network(offline: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = model(offline / f"hf/models--owner--name/snapshots/{commit}")
    (offline / "hf/models--owner--name/refs").mkdir()
    (offline / "hf/models--owner--name/refs/main").write_text(commit)
    assert resolve_model("owner/name") == snapshot
    cached = model(offline / "ms/models/owner/other-1___5")
    assert resolve_model("owner/other-1.5") == cached
    assert resolve_model("ms:owner/other-1.5") == cached


def downloads_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let every download end in `folder`; the list grows by whether it had to do without a network."""
    import huggingface_hub

    local: list[bool] = []

    def download(repository: str, *, local_files_only: bool, **rest: object) -> str:
        local.append(local_files_only)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return local


def test_an_unfinished_download_goes_on(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(offline / "snapshot")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    (folder / "one.safetensors").touch()
    local = downloads_to(folder, monkeypatch)
    assert resolve_model("owner/name") == folder
    assert local == [True, False]
    (folder / "two.safetensors").touch()
    assert resolve_model("owner/name") == folder
    assert local == [True, False, True]


def test_a_download_is_finished_when_the_weights_that_are_loaded_are_there(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(offline / "snapshot")
    (folder / "model.safetensors").rename(folder / "model-1-of-1.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}')
    for other in ("consolidated.safetensors", "pytorch_model.bin", "tf_model", "a"):
        (folder / f"{other}.index.json").write_text('{"weight_map": {"a": "not-fetched"}}')
    local = downloads_to(folder, monkeypatch)
    assert resolve_model("owner/name") == folder
    assert local == [True]
    (folder / "model.safetensors.index.json").write_text("cut off {")
    resolve_model("owner/name")
    assert local == [True, True, False]


def test_a_model_in_the_cache_is_called_what_its_repository_is(offline: Path) -> None:
    assert name_of(model(offline / "hf/models--owner--other-1.5/snapshots/0123abcd")) == "other-1.5"
    assert name_of(model(offline / "snapshots/tiny")) == "tiny"


def test_offline_the_error_names_both_hubs_and_the_way_out(offline: Path) -> None:
    with pytest.raises(HubError) as caught:
        resolve_model("owner/missing")
    assert caught.value.exit_code == 4
    for expected in ("owner/missing is not a folder here", "HF_ENDPOINT=", "ms:owner/missing", "copy the folder"):
        assert expected in str(caught.value)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE forbids|pip install modelscope"):
        resolve_model("ms:owner/missing")
