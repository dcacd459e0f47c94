"""`leveret inspect` says what a path is: every kind of thing that leveret makes, and damage in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from leveret.cli.main import main
from leveret.data.examples import Document
from leveret.data.shards import build_shards
from leveret.pipeline.ledger import Ledger, Record
from leveret.tokenizer.train import train_byte_bpe

Capture = pytest.CaptureFixture[str]


def inspect(capsys: Capture, path: Path, *options: str) -> str:
    """What is shown, without the lines of the tables and runs of spaces."""
    assert main(["inspect", str(path), *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return " ".join(out.replace("│", " ").split())


def refused(capsys: Capture, path: Path) -> tuple[int, str]:
    code = main(["inspect", str(path)])
    return code, capsys.readouterr().err


def test_a_model_folder_shows_config_tensors_tokenizer_and_tools(tmp_path: Path, capsys: Capture) -> None:
    torch = pytest.importorskip("torch")
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.weights.save import save_model

    tokenizer = train_byte_bpe(["some text " * 20], vocab_size=270, special_tokens=["<eos>"], eos_token="<eos>")
    tokenizer.save(tmp_path / "tiny")
    config = ModelConfig(
        vocab_size=272, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    model = Decoder(config).to(torch.bfloat16)
    save_model(model, tmp_path / "tiny")
    page = inspect(capsys, tmp_path / "tiny")
    parameters = sum(weight.numel() for weight in model.parameters())
    for expected in (
        "family mistral",
        "layers 3",
        "heads (query / key-value) 2 / 2",
        f"parameters {parameters:,}",
        f"vocabulary {tokenizer.vocab_size}",
        "special tokens 1: <eos>",
        "chat template -",
        f"(BF16 {2 * parameters / 1000:.1f} kB)",
        "model.layers.#.self_attn.q_proj.weight BF16 16 x 16 3 1,536",
    ):
        assert expected in page, page
    assert "model.layers.2.self_attn.q_proj.weight BF16 16 x 16 1 512" in inspect(
        capsys, tmp_path / "tiny", "--every-tensor"
    )


def test_a_part_that_cannot_be_read_does_not_hide_the_rest(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistrol"}')
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    page = inspect(capsys, tmp_path)
    assert "config cannot be read: model_type 'mistrol' is not a known family" in page
    assert "a F32 3 1 12" in page


def test_a_shard_that_is_not_there_is_named(tmp_path: Path, capsys: Capture) -> None:
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model-1.safetensors")
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    assert "missing files 1 of 2: model-2.safetensors" in inspect(capsys, tmp_path)
    index.write_text("[]")
    assert "index of shards cannot be read" in inspect(capsys, tmp_path)


def test_a_tensor_file_is_read_from_its_header(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"layers.0.w": np.zeros((2, 3), np.float16), "s": np.zeros((), np.int64)}, file, {"format": "np"})
    page = inspect(capsys, file)
    assert "layers.0.w F16 2 x 3 1 12" in page and "s I64 scalar 1 8" in page
    assert "2 tensors, 7 values, 20 bytes; metadata: {'format': 'np'}" in page


def test_a_bin_file_is_read_from_its_description_and_one_with_code_is_refused(tmp_path: Path, capsys: Capture) -> None:
    torch = pytest.importorskip("torch")
    tensors = {"layers.0.w": torch.zeros(2, 3), "layers.1.w": torch.zeros(2, 3), "b": torch.zeros(5).bfloat16()}
    torch.save(tensors, tmp_path / "x.pth")
    page = inspect(capsys, tmp_path / "x.pth")
    assert "layers.#.w F32 2 x 3 2 48" in page and "b BF16 5 1 10" in page and "3 tensors, 17 values, 58 bytes" in page
    torch.save({"w": Path("x")}, tmp_path / "y.bin")
    code, shown = refused(capsys, tmp_path / "y.bin")
    assert code == 1 and "y.bin asks for pathlib." in shown and "nothing in it was run" in shown


def test_a_folder_of_shards_in_pytorchs_form_is_a_model(tmp_path: Path, capsys: Capture) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "config.json").write_text('{"model_type": "mistrol"}')
    for number in (1, 2):
        torch.save({f"layers.{number}.w": torch.zeros(4)}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    page = inspect(capsys, tmp_path)
    assert "tensors 2 (F32 32 bytes) in .bin" in page and "values in the files 8" in page
    assert "layers.#.w F32 4 2 32" in page


def test_an_adapter_shows_its_settings_and_the_model_it_is_for(tmp_path: Path, capsys: Capture) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "models/tiny", "r": 8, "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"x.lora_A.weight": np.zeros((8, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    page = inspect(capsys, tmp_path)
    assert "peft_type LORA" in page and "base_model_name_or_path models/tiny" in page and "use_dora" not in page
    assert "parameters 32" in page and "x.lora_A.weight F32 8 x 4 1 128" in page


def test_a_pointer_of_git_lfs_is_told_in_every_form(tmp_path: Path, capsys: Capture) -> None:
    for name in ("a.safetensors", "a.bin", "a.gguf"):
        if name.endswith(".gguf"):
            pytest.importorskip("gguf", reason="GGUF files are read by the package gguf")
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        code, shown = refused(capsys, tmp_path / name)
        assert code == 1 and "git-lfs's pointer" in shown and "git lfs pull" in shown


@pytest.mark.parametrize("kept", [4, 20, -1])
def test_a_tensor_file_that_is_cut_short_is_refused(tmp_path: Path, capsys: Capture, kept: int) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"w": np.zeros((2, 3))}, file)
    file.write_bytes(file.read_bytes()[:kept])
    code, shown = refused(capsys, file)
    assert code == 1 and "x.safetensors is" in shown and "Traceback" not in shown


@pytest.mark.parametrize(("shape", "offsets"), [([10, 10], [0, 8]), ([2], [8, 0]), ([-2], [0, 8]), ([1], [0, 4])])
def test_a_header_that_disagrees_with_itself_or_its_file_is_refused(
    tmp_path: Path, capsys: Capture, shape: list[int], offsets: list[int]
) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(SafetensorError):
        load_file(file)
    code, shown = refused(capsys, file)
    assert code == 1 and "x.safetensors is damaged" in shown


def test_the_folder_of_a_tokenizer_shows_its_tokens(tmp_path: Path, capsys: Capture) -> None:
    tokenizer = train_byte_bpe(["ab " * 20], vocab_size=262, special_tokens=["[CLS]"], eos_token="[CLS]")
    tokenizer.save(tmp_path)
    page = inspect(capsys, tmp_path)
    assert f"vocabulary {tokenizer.vocab_size}" in page and "eos_token '[CLS]'" in page and "1: [CLS]" in page


def test_token_shards_say_how_much_they_hold(tmp_path: Path, capsys: Capture) -> None:
    tokenizer = train_byte_bpe(["ab " * 20], vocab_size=262, special_tokens=["<eos>"], eos_token="<eos>")
    shards = build_shards(
        [Document(text="xyz", source="one"), Document(text="兔", source="two")], tokenizer, tmp_path / "shards"
    )
    page = inspect(capsys, tmp_path / "shards")
    assert f"documents 2 tokens {shards.num_tokens} text 6 bytes" in page


def test_checkpoints_are_listed_with_their_state(tmp_path: Path, capsys: Capture) -> None:
    for step, files in ((200, ["state.safetensors"]), (400, [])):
        folder = tmp_path / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).write_text("x")
        (folder / "manifest.json").write_text(json.dumps({"step": step, "files": {"state.safetensors": "hash"}}))
    page = inspect(capsys, tmp_path)
    assert "checkpoints/step-00000200 200" in page and "whole" in page
    assert "checkpoints/step-00000400 400" in page and "lacks state.safetensors" in page


def test_a_finished_training_run_shows_its_figures_and_where_its_result_is(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model").mkdir()
    outcome = {"identity": {}, "figures": {"steps": 40, "loss": 1.25, "stopped_early_after_step": None}}
    (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    page = inspect(capsys, tmp_path)
    assert "steps 40 loss 1.25 result" in page and f"{tmp_path}/model"[-30:] in page.replace(" ", "")
    (tmp_path / "outcome.json").write_text("[]")
    code, said = refused(capsys, tmp_path)
    assert code == 3 and "outcome.json: this is no note of a training run" in said


def test_special_ids_that_no_token_has_are_named(tmp_path: Path, capsys: Capture) -> None:
    values = {
        "model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "eos_token_id": 100, "bos_token_id": 99,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert "no ids of this model eos_token_id 100 (there are 100 ids)" in inspect(capsys, tmp_path)


def test_a_run_folder_lists_its_stages_with_their_times(tmp_path: Path, capsys: Capture) -> None:
    Ledger(tmp_path).write(
        Record(
            stage="first",
            command="prepare",
            status="done",
            fingerprint="f",
            parts={},
            output="runs/x/first",
            seconds=61.5,
            summary={"rows": 10, "loss": 0.123456, "more": [1]},
        )
    )
    page = inspect(capsys, tmp_path)
    assert "first prepare done 61.5 rows 10, loss 0.1235 runs/x/first" in page
    assert "1 stages, 1 min 02 s of work" in page


def test_a_record_file_shows_its_keys_and_names_a_bad_line(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"query": "打开手电筒", "calls": []}\n\n{"query": "b"}\n', encoding="utf-8")
    page = inspect(capsys, file)
    assert "2 records" in page and "query 2" in page and "calls 1" in page and "打开手电筒" in page
    file.write_text('{"a": 1}\nnot json\n')
    code, shown = refused(capsys, file)
    assert code == 3 and "a.jsonl:2: this line is not valid JSON" in shown


def test_a_record_file_is_read_as_every_command_reads_it(tmp_path: Path, capsys: Capture) -> None:
    marked = '\ufeff{"text": "one"}\n{"text": "two"}\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(marked)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(marked))
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert "2 records" in inspect(capsys, tmp_path / name)
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    code, said = refused(capsys, tmp_path / "c.jsonl")
    assert code == 3
    assert "not UTF-8" in said


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "step-1/manifest.json"])
def test_a_damaged_description_is_told_and_no_bug(tmp_path: Path, capsys: Capture, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("[]")
    assert main(["inspect", str(tmp_path)]) in (0, 3)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "JSON object" in said or "damaged" in said


def test_what_is_unknown_is_said_with_what_would_be_known(tmp_path: Path, capsys: Capture) -> None:
    code, shown = refused(capsys, tmp_path)
    assert code == 3 and "model: a folder with config.json" in shown
    code, shown = refused(capsys, tmp_path / "nowhere")
    assert code == 3 and "there is nothing here" in shown


def test_inspect_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "mistral",
                "vocab_size": 10,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
            }
        )
    )
    code = (
        f"import sys; from leveret.cli.main import main; assert main(['inspect', {str(tmp_path)!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_gguf_file_shows_its_keys_and_tensors_and_a_broken_one_is_refused(tmp_path: Path, capsys: Capture) -> None:
    gguf = pytest.importorskip("gguf", reason="GGUF files are read by the package gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_name("hopper")
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "c", "d"])
    writer.add_eos_token_id(3)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 8), dtype=np.float16))
    writer.add_tensor("blk.1.attn_q.weight", np.zeros((4, 8), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shown = inspect(capsys, tmp_path / "m.gguf")
    assert "general.name 'hopper'" in shown and "4 values, the first ['a', 'b', 'c']" in shown
    assert "blk.#.attn_q.weight F16 4 x 8 2 128" in shown and "tensors 2 (F16 128 bytes)" in shown
    for fact in (
        "family llama",
        "parameters 64",
        "layers 2",
        "heads (query / key-value) 4 / 2",
        "vocabulary 4",
        "gpt2, text is cut by 'qwen2'",
        "eos 3 'd'",
        "text begins with bos no",
        "chat template 14 characters",
    ):
        assert fact in shown, shown
    (tmp_path / "n.gguf").write_bytes(b"GGUF and nothing else")
    code, error = refused(capsys, tmp_path / "n.gguf")
    assert code == 1 and "no whole GGUF file" in error
