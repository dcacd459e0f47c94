"""What lies beside a model's weights goes along with what is made of them."""

import json

from leveret.weights.companions import copy_companions, copy_over, pass_on


def folder(path, **files):
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_data_is_copied_and_code_is_not(tmp_path):
    source = folder(tmp_path / "a", tokenizer__json="{}", NOTICE="n", modeling_x__py="x", model__safetensors="w")
    target = folder(tmp_path / "b")
    assert copy_companions(source, target) == ["NOTICE", "tokenizer.json"]
    assert {file.name for file in target.iterdir()} == {"NOTICE", "tokenizer.json"}


def test_an_adapter_s_tokenizer_comes_whole_and_the_rest_from_the_first_that_has_it(tmp_path):
    base = folder(
        tmp_path / "base", tokenizer__json="base", tokenizer__model="base", chat_template__jinja="base",
        LICENSE__txt="base", generation_config__json="base", tools__json="base",
    )  # fmt: skip
    adapter = folder(tmp_path / "adapter", tokenizer__json="adapter", tools__json="adapter")
    target = folder(tmp_path / "merged")
    copy_over((adapter, base), target)
    assert {file.name: file.read_text() for file in target.iterdir()} == {
        "tokenizer.json": "adapter", "tools.json": "adapter", "LICENSE.txt": "base", "generation_config.json": "base",
    }  # fmt: skip


def test_without_a_tokenizer_of_its_own_an_adapter_takes_its_model_s(tmp_path):
    base = folder(tmp_path / "base", tokenizer__json="base", chat_template__jinja="base")
    target = folder(tmp_path / "merged")
    copy_over((folder(tmp_path / "adapter"), base), target)
    assert {file.name for file in target.iterdir()} == {"tokenizer.json", "chat_template.jinja"}


def test_a_trained_model_keeps_how_its_start_is_sampled_from_and_says_its_own_ids(tmp_path):
    said = {"do_sample": True, "temperature": 0.3, "eos_token_id": 2, "bos_token_id": 1, "transformers_version": "4"}
    start = folder(tmp_path / "start", generation_config__json=said, LICENSE="Apache", tokenizer__json="start")
    target = folder(tmp_path / "trained", generation_config__json={"eos_token_id": [2, 9], "temperature": 0.5})
    pass_on(start, target)
    kept = json.loads((target / "generation_config.json").read_text())
    assert kept == {"do_sample": True, "temperature": 0.5, "eos_token_id": [2, 9]}
    assert (target / "LICENSE").read_text() == "Apache"
    assert not (target / "tokenizer.json").exists()
