"""A model as a GGUF file: what the `gguf` package reads in it, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leveret.engine.defaults import read_defaults
from leveret.errors import ConfigError, CorruptedFile, LeveretError, MissingWeights, TokenizerError, WeightsError
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.gguf import GgufReport, write_gguf
from leveret.weights.gguf_file import open_gguf
from leveret.weights.gguf_layout import half_split, interleave
from leveret.weights.gguf_metadata import config_from, context_length, rope_divisors
from leveret.weights.gguf_read import CARRIED_FILES, GgufTensors, restore_companions
from leveret.weights.gguf_sentencepiece import joined, piece_types, scores_of
from leveret.weights.gguf_tokenizer import TokenizerKeys, tokenizer_keys
from leveret.weights.load import load_model
from leveret.weights.model_tensors import shapes_of
from leveret.weights.save import save_model

gguf = pytest.importorskip("gguf", reason="the oracle of GGUF files is the package gguf")

FAMILIES = ["mistral", "llama", "aquila", "mixtral", "lingowhale"]
TRAINED_ON = ["a hare runs, it's quick; 野兔在跑。", "def hop(self):\n    return 'self' * 2\n"] * 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_bpe(
        TRAINED_ON, vocab_size=300, special_tokens=["<s>", "</s>", "<end>"], bos_token="<s>", eos_token="</s>"
    )


def config_of(family: str, **changes: object) -> ModelConfig:
    settings: dict[str, object] = {
        "family": family, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
        "norm_scales_in_float32": family_for(family).norm_scales_in_float32,
        "moe": MoeConfig(num_experts=4, experts_per_token=2) if family == "mixtral" else None,
    }  # fmt: skip
    return ModelConfig(**(settings | changes))  # type: ignore[arg-type]


def make(folder: Path, tokenizer: Tokenizer, config: ModelConfig, dtype: torch.dtype = torch.float32) -> Path:
    model = Decoder(config)
    init_weights(model, 0)
    save_model(model.to(dtype), folder, generation={"max_new_tokens": 7})
    tokenizer.save(folder)
    return folder


def write(source: Path, target: Path, kind: str, keys: TokenizerKeys) -> GgufReport:
    return write_gguf(source, target, kind, keys, name="tiny")  # type: ignore[arg-type]


def read_back(file: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The config in a file, and all of its tensors by our names."""
    source = GgufTensors(open_gguf(file))
    shapes = shapes_of(source.config)
    return source.config, {
        name: torch.cat([values for _, values in source.blocks(name)]).reshape(shape).to(source.dtypes[name])
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)], ids=str
)
def test_whole_types_come_back_to_the_bit(
    family: str, kind: str, dtype: torch.dtype, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = config_of(family)
    source = make(tmp_path / "model", tokenizer, config, dtype)
    write(source, tmp_path / "m.gguf", kind, tokenizer_keys(tokenizer, config))
    assert restore_companions(open_gguf(tmp_path / "m.gguf"), tmp_path / "back") == []
    before, (after, tensors) = load_model(source), read_back(tmp_path / "m.gguf")
    assert after == before.config
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == dtype, name
    assert Tokenizer.load(tmp_path / "back").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(("kind", "most"), [("q8_0", 0.01), ("q4_0", 0.12)])
def test_blocks_are_those_of_the_gguf_package_and_come_back_as_near_as_their_bits(
    kind: str, most: float, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = config_of("mixtral")
    source = make(tmp_path / "model", tokenizer, config)
    write(source, tmp_path / "m.gguf", kind, tokenizer_keys(tokenizer, config))
    model, (_, back) = load_model(source), read_back(tmp_path / "m.gguf")
    for name, tensor in model.state_dict().items():
        error = (back[name].float() - tensor).norm() / tensor.norm()
        assert error <= most, (name, float(error))
    file = open_gguf(tmp_path / "m.gguf")
    assert file.type_of("blk.0.ffn_down_exps.weight") == kind.upper()
    stored = model.get_parameter("layers.0.mlp.experts.3.up_proj.weight").detach().numpy()
    assert np.array_equal(
        file.tensors["blk.0.ffn_up_exps.weight"].data[3],
        gguf.quants.quantize(stored, gguf.GGMLQuantizationType[kind.upper()]),
    )
    assert {file.type_of(name) for name in file.tensors if "norm" in name or "gate_inp" in name} == {"F32"}


def test_tensors_that_do_not_fit_are_told_with_the_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise OSError("13600 requested and 10688 written")  # as numpy's tofile says it

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", cut)
    config = config_of("llama")
    source = make(tmp_path / "m", tokenizer, config)
    with pytest.raises(OSError, match="No space left on device") as refused:
        write(source, tmp_path / "m.gguf", "f32", tokenizer_keys(tokenizer, config))
    assert refused.value.filename == str(tmp_path / "m.gguf")


def test_rows_that_are_no_whole_blocks_fall_back_to_float16_and_are_counted(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = config_of("llama", intermediate_size=40)
    source = make(tmp_path / "model", tokenizer, config)
    report = write(source, tmp_path / "m.gguf", "q4_0", tokenizer_keys(tokenizer, config))
    assert report.fallbacks == 2  # down_proj of two layers
    assert open_gguf(tmp_path / "m.gguf").type_of("blk.1.ffn_down.weight") == "F16"


def test_rows_of_q_and_k_are_turned_so_that_interleaved_rope_gives_the_same_scores() -> None:
    generator = np.random.default_rng(0)
    heads, width = 3, 8
    weight = generator.normal(size=(heads * width, 5))
    assert np.array_equal(half_split(interleave(weight, heads), heads), weight)
    angles = 7 * 10000.0 ** (-np.arange(0, width, 2) / width)
    x = generator.normal(size=5)
    ours, theirs = (weight @ x).reshape(heads, width), (interleave(weight, heads) @ x).reshape(heads, width)
    first, second = ours[:, : width // 2], ours[:, width // 2 :]
    turned = np.stack(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )
    even, odd = theirs[:, 0::2], theirs[:, 1::2]
    expected = np.stack([even * np.cos(angles) - odd * np.sin(angles), odd * np.cos(angles) + even * np.sin(angles)])
    assert np.allclose(turned, expected)


def test_the_keys_say_what_the_config_says(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_of("mixtral", rms_norm_eps=1e-6, rope=RopeConfig(theta=1e6, kind="linear", factor=4.0))
    source = make(tmp_path / "model", tokenizer, config)
    write(source, tmp_path / "m.gguf", "f16", tokenizer_keys(tokenizer, config, stop_ids=(tokenizer.id_of("<end>"),)))
    keys = open_gguf(tmp_path / "m.gguf").keys
    assert keys["general.architecture"] == "llama" and keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert keys["llama.context_length"] == 512 and keys["llama.rope.scaling.factor"] == 4
    assert keys["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert keys["llama.expert_count"] == 4 and keys["llama.expert_used_count"] == 2
    assert keys["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert keys["tokenizer.ggml.eot_token_id"] == tokenizer.id_of("<end>")
    assert keys["tokenizer.ggml.add_bos_token"] is False
    # A file of another program has no config of ours in it.
    foreign = config_from({key: value for key, value in keys.items() if not key.startswith("leveret.")})
    assert (foreign.moe, foreign.head_dim, foreign.rms_norm_eps) == (
        config.moe,
        16,
        1e-6,
    ) and foreign.rope == config.rope


def test_the_context_ends_where_llama_cpp_would_begin_to_differ(tokenizer: Tokenizer, tmp_path: Path) -> None:
    windowed = config_of("mistral", sliding_window=32)
    assert context_length(windowed) == 32
    dynamic = config_of("llama", rope=RopeConfig(kind="dynamic", factor=4.0))
    assert context_length(dynamic) == 128 and dynamic.context_tokens == 512
    report = write(
        make(tmp_path / "m", tokenizer, windowed), tmp_path / "m.gguf", "f16", tokenizer_keys(tokenizer, windowed)
    )
    assert any("sliding window" in notice for notice in report.notices)
    back, _ = read_back(tmp_path / "m.gguf")
    assert (back.sliding_window, back.max_position_embeddings) == (32, 128)


def test_llama3_divisors_leave_fast_pairs_alone_and_stretch_slow_ones() -> None:
    rope = RopeConfig(kind="llama3", factor=8.0, original_max_position_embeddings=64, theta=500.0)
    divisors = rope_divisors(config_of("llama", rope=rope))
    assert divisors is not None and divisors.shape == (8,)
    assert divisors[0] == 1 and divisors[-1] == pytest.approx(8) and (np.diff(divisors) >= 0).all()
    assert rope_divisors(config_of("llama")) is None


def test_a_tied_head_is_written_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_of("llama", tie_word_embeddings=True)
    write(make(tmp_path / "m", tokenizer, config), tmp_path / "m.gguf", "f32", tokenizer_keys(tokenizer, config))
    file = open_gguf(tmp_path / "m.gguf")
    assert "output.weight" not in file.tensors
    back, tensors = read_back(tmp_path / "m.gguf")
    assert back.tie_word_embeddings and "lm_head.weight" not in tensors


def test_what_cannot_be_written_or_read_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_of("llama")
    source = make(tmp_path / "m", tokenizer, config)
    keys = tokenizer_keys(tokenizer, config)
    write(source, tmp_path / "m.gguf", "f32", keys)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "m.gguf").read_bytes()[:5000])
    with pytest.raises((CorruptedFile, MissingWeights)):
        read_back(cut)
    with pytest.raises(TokenizerError, match="rows"):
        tokenizer_keys(tokenizer, config_of("llama", vocab_size=100))
    model = load_model(source)
    with torch.no_grad():
        model.norm.weight.fill_(1.0)
        model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    save_model(model, source)
    with pytest.raises(WeightsError, match="65504"):
        write(source, tmp_path / "n.gguf", "f16", keys)
    assert issubclass(CorruptedFile, LeveretError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["q8_0", "f16", "bf16"])
def test_weights_that_are_no_finite_numbers_are_refused_by_name(
    tokenizer: Tokenizer, tmp_path: Path, kind: str, value: float
) -> None:
    config = config_of("llama")
    source = make(tmp_path / "m", tokenizer, config)
    model = load_model(source)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[0, 0] = value
    save_model(model, source)
    with pytest.raises(WeightsError, match=r"layers\.0\.mlp\.up_proj\.weight holds 1 values that are infinite"):
        write(source, tmp_path / "n.gguf", kind, tokenizer_keys(tokenizer, config))


def test_a_yarn_whose_factor_llama_cpp_would_work_out_otherwise_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    yarn = RopeConfig(kind="yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0)
    source = make(tmp_path / "m", tokenizer, config_of("llama", rope=yarn))
    with pytest.raises(ConfigError, match="mscale"):
        write(source, tmp_path / "m.gguf", "f32", tokenizer_keys(tokenizer, config_of("llama")))
    same = RopeConfig(kind="yarn", factor=4.0, mscale=1.0)
    source = make(tmp_path / "n", tokenizer, config_of("llama", rope=same))
    write(source, tmp_path / "n.gguf", "f32", tokenizer_keys(tokenizer, config_of("llama")))


def test_pieces_are_joined_by_the_best_score_first_and_what_is_no_piece_is_bytes() -> None:
    vocabulary = {"▁": 0, "a": 1, "b": 2, "ab": 3, "▁a": 4, "ba": 5, "<0xF0>": 6, "<0x9F>": 7, "<0x90>": 8, "<0x87>": 9}
    content = {"model": {"vocab": vocabulary, "merges": [["b", "a"], ["▁", "a"], "a b"]}}
    scores = scores_of(content, 10)
    assert scores[5] > scores[4] > scores[3] and scores[0] == 0
    assert joined("aba", vocabulary, scores, space_prefix=True) == [4, 5]
    assert joined("ab", vocabulary, scores, space_prefix=False) == [3]
    assert joined("🐇", vocabulary, scores, space_prefix=False) == [6, 7, 8, 9]
    assert piece_types(content) == {index: 6 for index in (6, 7, 8, 9)}


def edited(file: Path, target: Path, key: str, value: object) -> Path:
    """The file with another number in one key, as the tools of the gguf package set it."""
    target.write_bytes(file.read_bytes())
    field = gguf.GGUFReader(target, "r+").fields[key]
    field.parts[field.data[0]][0] = value
    return target


@pytest.mark.parametrize(
    ("key", "value"), [("rope.freq_base", 5e4), ("attention.layer_norm_rms_epsilon", 0.01), ("context_length", 64)]
)
def test_a_number_that_was_changed_in_the_keys_is_not_hidden_by_the_config_in_the_file(
    key: str, value: float, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = config_of("llama")
    write(make(tmp_path / "m", tokenizer, config), tmp_path / "m.gguf", "f32", tokenizer_keys(tokenizer, config))
    file = edited(tmp_path / "m.gguf", tmp_path / "changed.gguf", f"llama.{key}", value)
    with pytest.raises(ConfigError, match=rf"changed after it was written: llama\.{key} is"):
        GgufTensors(open_gguf(file))


def test_other_merges_are_not_hidden_by_the_tokenizer_in_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_of("llama")
    keys = tokenizer_keys(tokenizer, config)
    write(make(tmp_path / "m", tokenizer, config), tmp_path / "m.gguf", "f32", replace(keys, merges=keys.merges[1:]))
    with pytest.raises(TokenizerError, match=r"changed after it was written: tokenizer\.ggml\.merges"):
        restore_companions(open_gguf(tmp_path / "m.gguf"), tmp_path / "back")


def test_the_template_and_the_ends_of_the_keys_go_before_those_that_the_file_carries(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = config_of("llama", eos_token_id=tokenizer.eos_id)
    source = make(tmp_path / "m", tokenizer, config)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    carried = {name: (source / name).read_text() for name in CARRIED_FILES if (source / name).is_file()}
    keys = replace(tokenizer_keys(Tokenizer.load(source), config), chat_template="new: {{ messages[0].content }}")
    write_gguf(source, tmp_path / "m.gguf", "f32", keys, name="tiny", carried=carried)
    end = tokenizer.special_ids["<end>"]
    file = edited(tmp_path / "m.gguf", tmp_path / "changed.gguf", "tokenizer.ggml.eos_token_id", end)
    (told,) = restore_companions(open_gguf(file), tmp_path / "back")
    assert "another chat template and other special tokens" in told
    back = Tokenizer.load(tmp_path / "back")
    assert back.chat_template == keys.chat_template and back.eos_id == end
    assert read_defaults(tmp_path / "back").stop_ids == (end,)
    assert json.loads((tmp_path / "back/generation_config.json").read_text())["max_new_tokens"] == 7
