"""Adapters by name: at the start, while running, together with each other, and who may load them."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from leveret.config import parse_config
from leveret.engine.text import TextModel
from leveret.errors import ConfigError
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.model.token_rows import train_rows
from leveret.serve.config import ServeConfig
from leveret.serve.models import ServedModels, configured
from leveret.serve.running import running
from leveret.weights.adapter import save_adapter
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.load import load_model
from leveret.weights.tokens import resize_tokens

from .test_errors import send

GREEDY: dict[str, Any] = {"prompt": "Set a timer", "max_tokens": 16, "temperature": 0}
KEY = {"Authorization": "Bearer secret"}


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    model = load_model(base)
    add_lora(model, LoraSettings(rank=2, alpha=8), "all-linear", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5, generator=generator)
    save_adapter(model, folder, base=str(base), fingerprint=fingerprint_of(base))
    return folder


@pytest.fixture(scope="module")
def folders(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(model_dir, top / name, seed) for seed, name in enumerate(("poet", "coder"))}


@pytest.fixture(scope="module")
def served(model: TextModel, model_dir: Path, folders: dict[str, Path]) -> Iterator[str]:
    config = ServeConfig(model=str(model_dir), port=0, api_key="secret", adapter=[f"poet={folders['poet']}"])
    with running(model, config) as url:
        yield url


@pytest.fixture(scope="module")
def served_client(served: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served}/v1", api_key="secret", max_retries=0) as client:
        yield client


def post(url: str, path: str, body: dict[str, Any], **headers: str) -> int:

    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), KEY | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_request_chooses_an_adapter_by_name(
    served_client: openai.OpenAI, model: TextModel, model_dir: Path, folders: dict[str, Path]
) -> None:
    cards = {card.id: card.model_extra for card in served_client.models.list()}
    assert list(cards) == ["phone", "poet"] and (cards["poet"] or {})["parent"] == "phone"
    alone = TextModel.load(model_dir, adapter=folders["poet"])
    texts = {name: served_client.completions.create(model=name, **GREEDY).choices[0].text for name in cards}
    assert texts == {
        "phone": model.generate(**GREEDY),
        "poet": alone.generate(**GREEDY),
    }
    assert texts["phone"] != texts["poet"]


def test_adapters_come_and_go_while_others_are_answered(
    served: str, served_client: openai.OpenAI, model_dir: Path, folders: dict[str, Path]
) -> None:
    def ask(name: str) -> str:
        return served_client.completions.create(model=name, **GREEDY).choices[0].text

    before = {name: ask(name) for name in ("phone", "poet")}
    with ThreadPoolExecutor(6) as pool:
        flowing = [pool.submit(ask, name) for name in ("phone", "poet") * 4]
        body = {"lora_name": "coder", "lora_path": str(folders["coder"])}
        assert post(served, "/v1/load_lora_adapter", body) == 200
        mixed = list(pool.map(ask, ["coder", "phone", "poet"] * 4))
        assert [each.result() for each in flowing] == [before["phone"], before["poet"]] * 4
    coder = TextModel.load(model_dir, adapter=folders["coder"]).generate(**GREEDY)
    assert mixed == [coder, before["phone"], before["poet"]] * 4
    assert post(served, "/v1/load_lora_adapter", body) == 400  # the name is taken
    assert post(served, "/v1/unload_lora_adapter", {"lora_name": "coder"}) == 200
    with pytest.raises(openai.NotFoundError):
        ask("coder")
    assert post(served, "/v1/unload_lora_adapter", {"lora_name": "coder"}) == 404
    assert post(served, "/v1/unload_lora_adapter", {"lora_name": "phone"}) == 404  # no adapter


def test_one_name_is_given_once_and_the_server_answers_while_adapters_are_loaded(
    served: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    make = ServedModels._adapted

    def slow(self: ServedModels, *args: Any) -> TextModel:
        begun.set()
        assert go_on.wait(timeout=60)
        return make(self, *args)

    monkeypatch.setattr(ServedModels, "_adapted", slow)
    body = {"lora_name": "coder", "lora_path": str(folders["coder"])}
    with ThreadPoolExecutor(4) as pool:
        try:
            loads = [pool.submit(post, served, "/v1/load_lora_adapter", body) for _ in range(2)]
            assert begun.wait(timeout=60)
            unload = pool.submit(post, served, "/v1/unload_lora_adapter", {"lora_name": "nobody"})
            for _ in range(3):
                assert send(served, "GET", "/health")[0] == 200
            assert not unload.done()
        finally:
            go_on.set()
        assert sorted(load.result() for load in loads) == [200, 400] and unload.result() == 404
    assert post(served, "/v1/unload_lora_adapter", {"lora_name": "coder"}) == 200


def test_adapters_run_in_the_engine_of_their_model_unless_they_have_tokens_of_their_own(
    model: TextModel, model_dir: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    larger = load_model(model_dir)
    size = larger.config.vocab_size
    resize_tokens(larger, size + 2)
    add_lora(larger, LoraSettings(rank=2, alpha=8), ["q_proj"], seed=0)
    train_rows(larger, [size, size + 1])
    save_adapter(larger, tmp_path, base=str(model_dir), fingerprint=fingerprint_of(model_dir))
    config = ServeConfig(model=str(model_dir), adapter=[f"{name}={folder}" for name, folder in folders.items()])
    models = ServedModels(configured(model, config), config)
    engine = models.find(None).engine
    assert [models.find(name).engine.runs_in for name in folders] == [engine, engine]
    assert set(models.engine_stats()) == {"phone"}
    models.load("apart", str(tmp_path))
    assert models.find("apart").engine.runs_in is models.find("apart").engine
    assert set(models.engine_stats()) == {"phone", "apart"}


def test_only_who_has_a_key_may_load(served: str, url: str, folders: dict[str, Path], tmp_path: Path) -> None:
    body = {"lora_name": "x", "lora_path": str(folders["coder"])}
    assert post(served, "/v1/load_lora_adapter", body, Authorization="Bearer wrong") == 401
    status, content = send(url, "POST", "/v1/load_lora_adapter", json.dumps(body).encode())
    assert status == 403 and content["error"]["code"] == "forbidden" and "--adapter" in content["error"]["message"]
    for path in (str(tmp_path), str(tmp_path / "nowhere"), "someone/on-the-hub"):
        raw = json.dumps({"lora_name": "x", "lora_path": path}).encode()
        status, content = send(served, "POST", "/v1/load_lora_adapter", raw, **KEY)
        assert status == 400 and content["error"]["code"] == "invalid_adapter", content
    for wrong in ({"lora_name": "x"}, {"lora_path": "x"}, {"lora_name": 1, "lora_path": "x"}):
        assert post(served, "/v1/load_lora_adapter", wrong) == 400


def test_damaged_adapters_are_refused_and_the_rest_is_served(
    served: str, served_client: openai.OpenAI, folders: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((folders["coder"] / "adapter_config.json").read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(b"\x00" * 50)
    raw = json.dumps({"lora_name": "x", "lora_path": str(broken)}).encode()
    status, content = send(served, "POST", "/v1/load_lora_adapter", raw, **KEY)
    assert status == 400 and content["error"]["param"] == "lora_path"
    assert [card.id for card in served_client.models.list()] == ["phone", "poet"]


@pytest.mark.parametrize(
    ("given", "words"),
    [(["poet"], "name=folder"), (["=x"], "name=folder"), (["a=x", "a=y"], "one name")],
)
def test_what_is_not_name_and_folder_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(ServeConfig, {"model": "x", "adapter": given}, source="here")


def test_an_adapter_that_is_not_there_is_an_error_at_the_start(model: TextModel, model_dir: Path) -> None:
    config = ServeConfig(model=str(model_dir), port=0, adapter=["poet=/nowhere"])
    with pytest.raises(ConfigError, match="adapter_config"), running(model, config):
        pass
