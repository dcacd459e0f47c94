"""`leveret convert`: every form comes back to the bit where the dtype allows, and what is damaged is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.chat.template import builtin_template
from leveret.config import parse_config
from leveret.console import Console
from leveret.convert.config import ConvertConfig
from leveret.convert.run import RECORD, run
from leveret.errors import (
    ConfigError,
    CorruptedFile,
    LeveretError,
    MissingWeights,
    ShapeMismatch,
    UnexpectedWeights,
    UnsafeFile,
    WeightsError,
)
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights import model_tensors
from leveret.weights.gguf import write_gguf
from leveret.weights.gguf_tokenizer import TokenizerKeys, tokenizer_keys
from leveret.weights.load import load_model
from leveret.weights.save import save_model

pytest.importorskip("gguf", reason="GGUF files are read by the package gguf")
QUIET = Console(quiet=True)
FAMILIES = ["mistral", "llama", "aquila", "mixtral", "lingowhale"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    template = builtin_template("chatml")
    return train_byte_bpe(
        ["a hare runs, it's quick; 野兔在跑。"] * 8,
        vocab_size=320,
        special_tokens=["<s>", "</s>", *template.special_tokens],
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template.source,
    )


@pytest.fixture(scope="module")
def keys(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenizerKeys:
    """Found once: all models here have as many rows."""
    return tokenizer_keys(tokenizer, load_model(make(tmp_path_factory.mktemp("keys"), tokenizer)).config)


def make(folder: Path, tokenizer: Tokenizer, family: str = "llama", dtype: Any = torch.float32, **more: Any) -> Path:
    config = ModelConfig(
        family=family, vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
        norm_scales_in_float32=family_for(family).norm_scales_in_float32, eos_token_id=1,
        moe=MoeConfig(num_experts=4, experts_per_token=2) if family == "mixtral" else None, **more,
    )  # fmt: skip
    model = Decoder(config)
    init_weights(model, 0)
    save_model(model.to(dtype), folder, generation={"temperature": 0.7}, shard_bytes=more.get("shard", 10**9))
    tokenizer.save(folder)
    return folder


def as_bin(folder: Path, *, shards: int = 1, zipped: bool = True) -> Path:
    """The folder with its tensors in PyTorch's form."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return folder
    file_of = {name: f"pytorch_model-{number % shards + 1:05d}-of-{shards:05d}.bin" for number, name in
               enumerate(tensors)}  # fmt: skip
    for file in set(file_of.values()):
        torch.save({name: tensors[name] for name in tensors if file_of[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return folder


def converted(source: Path, output: Path, **keys: object) -> dict[str, Any]:
    return run(
        parse_config(ConvertConfig, {"model": str(source), "output": output} | keys, source="test"), QUIET
    ).summary


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def equal(first: Path, second: Path) -> bool:
    one, two = tensors_of(first), tensors_of(second)
    return one.keys() == two.keys() and all(
        value.dtype == two[name].dtype and torch.equal(value, two[name]) for name, value in one.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_folder_comes_through_to_the_bit(family: str, dtype: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = make(tmp_path / "m", tokenizer, family, dtype)
    assert converted(source, tmp_path / "out")["exact"]
    assert equal(source, tmp_path / "out")
    assert load_model(source).config == load_model(tmp_path / "out").config
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("form", ["one", "shards", "stream", "lone"])
def test_bin_files_become_safetensors_with_the_same_values(form: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", tokenizer, "mixtral", torch.bfloat16)
    folder = make(tmp_path / "m", tokenizer, "mixtral", torch.bfloat16)
    as_bin(folder, shards=3 if form == "shards" else 1, zipped=form != "stream")
    source = folder
    if form == "lone":
        source = tmp_path / "weights.pth"
        (folder / "pytorch_model.bin").rename(source)
        with pytest.raises(ConfigError, match="model_config_file"):
            converted(source, tmp_path / "out")
    keys = {"model_config_file": folder / "config.json"} if form == "lone" else {}
    summary = converted(source, tmp_path / "out", **keys)
    assert summary["from"] == (".pth" if form == "lone" else ".bin")
    assert equal(whole, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin*"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_a_gguf_file_comes_back(
    kind: Any, family: str, tokenizer: Tokenizer, keys: TokenizerKeys, tmp_path: Path
) -> None:
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}.get(kind, torch.float32)
    source = make(tmp_path / "m", tokenizer, family, dtype)
    config = load_model(source).config
    carried = {"chat_template.jinja": (source / "chat_template.jinja").read_text()}
    write_gguf(source, tmp_path / "m.gguf", kind, keys, name="m", carried=carried)
    converted(tmp_path / "m.gguf", tmp_path / "out")
    assert load_model(tmp_path / "out").config == config
    assert Tokenizer.load(tmp_path / "out").fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path / "out").chat_template == tokenizer.chat_template
    if kind[0] != "q":
        assert equal(source, tmp_path / "out")
        return
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    for name, value in before.items():
        assert (after[name].float() - value).norm() <= (0.12 if kind == "q4_0" else 0.01) * value.norm(), name
    assert converted(tmp_path / "m.gguf", tmp_path / "exact", dtype="float32")["exact"]


def test_another_dtype_rounds_as_torch_does_and_is_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = make(tmp_path / "m", tokenizer)
    summary = converted(source, tmp_path / "half", dtype="bfloat16")
    before, after = tensors_of(source), tensors_of(tmp_path / "half")
    assert all(torch.equal(after[name], value.bfloat16()) for name, value in before.items())
    record = json.loads((tmp_path / "half" / RECORD).read_text())
    rounded = {name: int((value.bfloat16().float() != value).sum()) for name, value in before.items()}
    assert record["rounded"] == {name: count for name, count in rounded.items() if count} and not summary["exact"]
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert converted(tmp_path / "half", tmp_path / "wide", dtype="float32")["exact"]
    assert converted(tmp_path / "wide", tmp_path / "again", dtype="bfloat16")["exact"]
    assert equal(tmp_path / "half", tmp_path / "again")


def test_transformers_reads_what_was_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    source = as_bin(make(tmp_path / "m", tokenizer, "mixtral"), shards=2)
    converted(source, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([tokenizer.encode("the hare 野兔")])
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, load_model(source)(ids), atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").encode("野兔 x") == tokenizer.encode("野兔 x")


def test_blocks_of_any_size_give_the_same_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "m", tokenizer, "lingowhale")
    converted(source, tmp_path / "large")
    monkeypatch.setattr(model_tensors, "BLOCK_VALUES", 37)
    converted(source, tmp_path / "small")
    assert load_file(tmp_path / "small/model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    assert (tmp_path / "small/model.safetensors").read_bytes() == (tmp_path / "large/model.safetensors").read_bytes()


def test_the_place_of_code_is_taken_out_and_python_files_are_left_behind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = make(tmp_path / "m", tokenizer)
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoModel": "modeling.X"}}))
    (source / "modeling.py").write_text("print('ran')")
    converted(source, tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text())
    assert not (tmp_path / "out/modeling.py").exists()


def test_a_tied_head_is_left_out_when_it_is_the_embedding_and_refused_when_it_is_not(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = make(tmp_path / "m", tokenizer, tie_word_embeddings=True)
    edit(source, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    converted(source, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")
    assert load_model(tmp_path / "out").config.tie_word_embeddings
    edit(source, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(UnexpectedWeights, match="ties the head to the embedding"):
        converted(source, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A .bin of 134 MB takes at most 50 MB more than a tiny one, which takes what PyTorch loads when it is used."""
    tiny = make(tmp_path / "tiny", tokenizer)
    config = ModelConfig(
        family="llama", vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip
    source = tmp_path / "m"
    source.mkdir()
    values = family_for("llama").config_to_hf(config)
    (source / "config.json").write_text(json.dumps(values))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Decoder(config).state_dict().items()}
    names = {family_for("llama").stored_name(name): shape for name, shape in shapes.items()}
    torch.save({name: torch.ones(shape) for name, shape in names.items()}, source / "pytorch_model.bin")
    assert (source / "pytorch_model.bin").stat().st_size > 134e6
    code = f"""
import torch
from pathlib import Path
from leveret.console import Console
from leveret.convert.config import ConvertConfig
from leveret.convert.run import run
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def convert(source):
    run(ConvertConfig(model=source, output=Path({str(tmp_path / "out")!r}), dtype="bfloat16"), Console(quiet=True))
convert({str(tiny)!r})
before = peak()
convert({str(source)!r})
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert int(done.stdout) < 50e6, done.stdout + done.stderr


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


DAMAGE: dict[str, tuple[Any, type[LeveretError], str]] = {
    "missing": (lambda t: t.pop("model.norm.weight"), MissingWeights, "model.norm.weight"),
    "extra": (lambda t: t.update(surplus=torch.ones(1)), UnexpectedWeights, "surplus"),
    "shape": (lambda t: t.update({"model.norm.weight": torch.ones(7)}), ShapeMismatch, r"\(7,\)"),
    "nan": (lambda t: t["model.norm.weight"].fill_(float("nan")), WeightsError, "norm.weight holds 64 values"),
    "wide": (lambda t: t["model.norm.weight"].fill_(1e9), WeightsError, "beyond the largest of float16, 65504"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_what_does_not_fit_is_named_and_nothing_is_written(damage: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = make(tmp_path / "m", tokenizer)
    change, kind, said = DAMAGE[damage]
    edit(source, change)
    with pytest.raises(kind, match=said):
        converted(source, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


def test_damaged_files_and_files_with_code_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = as_bin(make(tmp_path / "m", tokenizer))
    file = source / "pytorch_model.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    with pytest.raises(CorruptedFile, match=r"pytorch_model\.bin"):
        converted(source, tmp_path / "out")
    torch.save({"x": Path("x")}, file)
    with pytest.raises(UnsafeFile, match="pathlib"):
        converted(source, tmp_path / "out")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ConfigError, match="no tensor file"):
        converted(tmp_path / "x.txt", tmp_path / "out")
    file.write_bytes(whole)
    with pytest.raises(ConfigError, match="would replace"):
        converted(source, source)


def test_a_process_that_is_killed_leaves_nothing_and_the_next_one_finishes(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = make(tmp_path / "m", tokenizer)
    code = f"""
import os, signal
from pathlib import Path
from leveret.console import Console
from leveret.convert.config import ConvertConfig
from leveret.convert.run import run
from leveret.weights.writer import WeightWriter
write, calls = WeightWriter.write, []
def killing(self, *rest):
    calls.append(1)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *rest)
WeightWriter.write = killing
run(ConvertConfig(model={str(source)!r}, output=Path({str(tmp_path / "out")!r})), Console(quiet=True))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -9 and not (tmp_path / "out").exists()
    assert any(path.name.startswith(".out.draft") for path in tmp_path.iterdir())
    converted(source, tmp_path / "out")
    assert equal(source, tmp_path / "out") and sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]
