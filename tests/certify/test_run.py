"""Certificates that pass, and above all certificates that must fail and say where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.certify.config import CertifyConfig
from leveret.certify.run import run
from leveret.certify.zoo import zoo
from leveret.commands import StageResult
from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import CertificateError, CheckpointError, ConfigError, LeveretError, MissingExtra
from leveret.model.decoder import Decoder
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.model.prefix import add_prefix
from leveret.model.token_rows import train_rows
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run as quantize
from leveret.tokenizer.files import Tokenizer
from leveret.trainer.adamw import AdamW
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.weights.adapter import save_adapter
from leveret.weights.load import load_model
from leveret.weights.merged import merge_into_model

MakeForm = Callable[..., Path]
QUIET = Console(quiet=True)


def certify(*forms: object, **changes: object) -> StageResult:
    data = {"forms": [str(form) for form in forms], "transformers": "off", "greedy_tokens": 6} | changes
    return run(parse_config(CertifyConfig, data, source="test"), QUIET)


def verdicts(certificate: Path, pair: int = 0) -> dict[str, str]:
    content = json.loads((certificate / "certificate.json").read_text())
    return {check["name"]: check["verdict"] for check in content["comparisons"][pair]["checks"]}


def test_a_copy_of_a_model_is_the_same_in_everything(make_form: MakeForm, text: Path, tmp_path: Path) -> None:
    result = certify(make_form("a"), make_form("b"), text=[text], output=tmp_path / "out")
    assert result.summary["passed"] and result.output == tmp_path / "out"
    assert set(verdicts(tmp_path / "out").values()) == {"same"}
    figures = json.loads((tmp_path / "out" / "certificate.json").read_text())["comparisons"][0]["figures"]
    assert figures["largest_logit_difference"] == 0 and figures["same_choice"] == 1
    assert figures["perplexity_first"] == figures["perplexity_second"]


def test_one_perturbed_weight_fails_and_its_layer_is_named(make_form: MakeForm, tmp_path: Path) -> None:
    def perturb(model: Decoder) -> None:
        model.layers[1].mlp.up_proj.weight[5, 7] += 0.5

    with pytest.raises(CertificateError, match=r"module layers\.1\.mlp\.up_proj") as caught:
        certify(make_form("a"), make_form("b", change=perturb), output=tmp_path / "out")
    assert caught.value.exit_code == 5 and "logits" in str(caught.value) and ", token 0:" in str(caught.value)
    assert verdicts(tmp_path / "out") == {
        "token ids": "same",
        "stop ids": "same",
        "sampling": "same",
        "context": "same",
        "network": "same",
        "embedding rows": "same",
        "logits": "different",
        "KL divergence": "different",
        "perplexity": "not compared",
        "greedy text": verdicts(tmp_path / "out")["greedy text"],
    }


def test_a_changed_embedding_row_is_found_where_its_token_stands(make_form: MakeForm, tokenizer: Tokenizer) -> None:
    comma = tokenizer.encode("，")[0]

    def perturb(model: Decoder) -> None:
        model.embed_tokens.weight[comma] *= 1.5

    with pytest.raises(CertificateError, match=r"'chinese', token .*module embed_tokens") as caught:
        certify(make_form("a"), make_form("b", change=perturb))
    text = "野兔在清晨的田野里奔跑，没有人追得上它。明天北京的天气怎么样？"
    place = f"token {tokenizer.encode(text).index(comma)} (character 11, after '野兔在清晨的田野里奔跑'):"
    assert place in str(caught.value)


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan")])
def test_a_changed_row_of_an_id_that_no_text_holds_is_found(
    make_form: MakeForm, tmp_path: Path, tokenizer: Tokenizer, value: float
) -> None:
    heard = {index for fixture in zoo([]) if fixture.text for index in tokenizer.encode(fixture.text)}
    unheard = max(set(range(tokenizer.vocab_size)) - heard)

    def perturb(model: Decoder) -> None:
        model.embed_tokens.weight[unheard] = value

    whole, damaged = make_form("a"), make_form("b", change=perturb)
    with pytest.raises(CertificateError, match="embedding rows"):
        certify(whole, damaged, output=tmp_path / "out")
    with pytest.raises(CertificateError, match="embedding rows"):
        certify(whole, make_form("c", change=perturb, dtype=torch.bfloat16))


def test_a_change_between_modules_is_told_from_a_changed_module(make_form: MakeForm) -> None:
    path = make_form("b")
    values = json.loads((path / "config.json").read_text())
    changed = json.dumps(values).replace("10000.0", "50000.0")
    assert changed != json.dumps(values)
    (path / "config.json").write_text(changed)
    with pytest.raises(CertificateError, match=r"layers\.0\.self_attn\.o_proj .*the difference arises between"):
        certify(make_form("a"), path)


def test_a_changed_tokenizer_fails_at_token_ids_and_names_the_text(make_form: MakeForm, tmp_path: Path) -> None:
    path = make_form("b")
    content = json.loads((path / "tokenizer.json").read_text())
    chinese = next(merge for merge in content["model"]["merges"] if not "".join(merge).isascii())
    content["model"]["merges"].remove(chinese)
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CertificateError, match="token ids differ\n  first at text 'chinese', token") as caught:
        certify(make_form("a"), path, output=tmp_path / "out")
    assert "against id" in str(caught.value)
    assert verdicts(tmp_path / "out")["logits"] == "same", "weights are judged apart from the tokenizer"


def test_a_changed_template_fails_at_the_conversation_it_changes(make_form: MakeForm) -> None:
    path = make_form("b")
    template = path / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|im_end|>'", "' <|im_end|>'"))
    with pytest.raises(CertificateError, match="first at chat 'one question'"):
        certify(make_form("a"), path)


def test_another_vocabulary_is_not_a_form_of_the_same_model(make_form: MakeForm, tmp_path: Path) -> None:
    path = make_form("b")
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"vocab_size": values["vocab_size"] + 8}))
    tensors = load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.zeros(8, 64)])
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CertificateError, match="vocabulary differ"):
        certify(make_form("a"), path, output=tmp_path / "out")


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_directories_pass_by_their_own_bounds(
    make_form: MakeForm, text: Path, tmp_path: Path, bits: int
) -> None:
    quantize(QuantizeConfig(model=str(make_form("a")), output=tmp_path / "q", bits=bits, group_size=32), QUIET)
    certify(tmp_path / "a", tmp_path / "q", text=[text], output=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert content["comparisons"][0]["kind"] == f"int{bits}"
    assert content["forms"][1]["numbers"] == f"int{bits} + float32"
    assert content["comparisons"][0]["figures"]["kl_nats"] > 0


def test_a_damaged_quantized_layer_fails_and_is_named(make_form: MakeForm, tmp_path: Path) -> None:
    quantize(QuantizeConfig(model=str(make_form("a")), output=tmp_path / "q", group_size=32), QUIET)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.scales"] *= -4
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CertificateError, match=r"most at .*module layers\.1\.mlp\.gate_proj"):
        certify(tmp_path / "a", tmp_path / "q")


def test_bfloat16_is_judged_as_16_bit_and_passes(make_form: MakeForm, text: Path, tmp_path: Path) -> None:
    certify(make_form("a"), make_form("b", dtype=torch.bfloat16), text=[text], output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["comparisons"][0]["kind"] == "16-bit"


def test_weights_that_are_not_numbers_never_pass(make_form: MakeForm) -> None:
    def spoil(model: Decoder) -> None:
        model.layers[0].self_attn.v_proj.weight[0, 0] = float("nan")

    with pytest.raises(CertificateError, match=r"layers\.0\.self_attn\.v_proj"):
        certify(make_form("a"), make_form("b", change=spoil))


def test_the_module_in_which_a_nan_arises_is_named_in_lossy_kinds_too(make_form: MakeForm) -> None:
    def spoil(model: Decoder) -> None:
        model.layers[0].self_attn.v_proj.weight[0, 0] = float("nan")

    with pytest.raises(CertificateError, match=r"module layers\.0\.self_attn\.v_proj"):
        certify(make_form("a"), make_form("b", change=spoil, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("old", "new", "told"), [("10000.0", "10500.0", "RoPE theta 10000"), ("1e-05", "2e-05", "rms_norm_eps 1e-05")]
)
def test_another_number_of_the_network_is_found_where_rounding_hides_it(
    make_form: MakeForm, old: str, new: str, told: str
) -> None:
    first, second = make_form("a"), make_form("b", dtype=torch.bfloat16)
    changed = (second / "config.json").read_text().replace(old, new)
    assert changed != (second / "config.json").read_text()
    (second / "config.json").write_text(changed)
    with pytest.raises(CertificateError, match=rf"network differ\n  network: {told}, and the second"):
        certify(first, second)


@pytest.mark.parametrize("place", ["layers.1.mlp.up_proj", "norm"])
def test_one_wrong_weight_is_found_where_rounding_hides_it(make_form: MakeForm, place: str) -> None:
    def perturb(model: Decoder) -> None:
        weight = model.get_submodule(place).weight
        assert isinstance(weight, torch.Tensor)
        weight[3] = weight[3] * 1.1

    first, second = (make_form(name, dtype=torch.bfloat16) for name in ("a", "b"))
    certify(first, second)
    with pytest.raises(CertificateError, match=rf"matrices differ\n  matrices: .* 0\.1.* of row 3 of {place}"):
        certify(first, make_form("c", change=perturb, dtype=torch.bfloat16))


def training_of(model: Decoder, folder: Path, dtype: torch.dtype) -> tuple[AdamW, Checkpoints]:
    """What updates the model, and what keeps its state below `folder`."""
    optimizer = AdamW(model, TrainingConfig(max_steps=2), dtype=dtype)
    return optimizer, Checkpoints(folder / "checkpoints", identity={}, keep=2, console=QUIET)


@pytest.fixture
def run_folder(make_form: MakeForm, config: object) -> Path:
    """A run with its model saved and two checkpoints, of which the newer has the saved weights."""
    folder = make_form("run/model").parent
    model = load_model(folder / "model")
    optimizer, saver = training_of(model, folder, torch.float32)
    optimizer.masters += 1
    saver.save(1, optimizer)
    optimizer.masters -= 1
    saver.save(2, optimizer)
    optimizer.close()
    return folder


def test_the_newest_checkpoint_of_a_run_is_its_saved_model(run_folder: Path, tmp_path: Path) -> None:
    certify(run_folder / "checkpoints", run_folder / "model", output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["forms"][0]["reader"] == "checkpoint"
    with pytest.raises(CertificateError, match="first at"):
        certify(run_folder / "checkpoints" / "step-00000001", run_folder / "model")


@pytest.mark.parametrize("merged", [False, True])
def test_the_checkpoint_of_an_adapter_is_the_adapter_on_its_model(
    make_form: MakeForm, tmp_path: Path, merged: bool
) -> None:
    base, folder = make_form("base"), tmp_path / "run"
    model = load_model(base)
    add_lora(model, LoraSettings(rank=4, alpha=8), "all-linear", seed=0)
    train_rows(model, [5])
    optimizer, saver = training_of(model, folder, torch.float32)
    optimizer.masters += 0.01
    saver.save(1, optimizer)
    save_adapter(model, folder / "adapter", base=str(base))
    if merged:
        merge_into_model(folder / "adapter", folder / "model")
    certify(folder / "checkpoints", folder / "adapter", *([folder / "model"] if merged else []))
    with pytest.raises(CertificateError, match="first at"):
        certify(folder / "checkpoints", base)


@pytest.mark.parametrize("prefix", [False, True])
def test_the_checkpoint_of_an_adapter_that_is_saved_in_bfloat16_is_judged_as_rounded(
    make_form: MakeForm, tmp_path: Path, prefix: bool
) -> None:
    base, folder = make_form("base"), tmp_path / "run"
    model = load_model(base)
    if prefix:
        add_prefix(model, 3, seed=0)
    else:
        add_lora(model, LoraSettings(rank=4, alpha=8), "all-linear", seed=0)
    optimizer, saver = training_of(model, folder, torch.bfloat16)
    optimizer.masters += 0.0123
    optimizer._push()
    saver.save(1, optimizer)
    save_adapter(model, folder / "adapter", base=str(base))
    certify(folder / "checkpoints", folder / "adapter", output=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert content["comparisons"][0]["kind"] == "16-bit" and content["forms"][0]["numbers"] == "float32"
    optimizer.masters += 0.5
    saver.save(2, optimizer)
    with pytest.raises(CertificateError):
        certify(folder / "checkpoints", folder / "adapter")


def test_a_damaged_checkpoint_is_not_compared(run_folder: Path) -> None:
    state = run_folder / "checkpoints" / "step-00000002" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(CheckpointError, match="damaged"):
        certify(run_folder / "checkpoints", run_folder / "model")


def test_transformers_reads_the_same_model(make_form: MakeForm, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    certify(make_form("a"), transformers="require", text=[text], output=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert content["forms"][1]["reader"] == "transformers" and content["comparisons"][0]["kind"] == "exact"
    assert set(verdicts(tmp_path / "out").values()) == {"same"}
    assert "2 left out" in content["comparisons"][0]["checks"][0]["measured"], "tool calls, and smuggled special text"


def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, *, extra: str, purpose: str) -> None:
        raise MissingExtra(f"{purpose} needs {module}, which is not installed")

    monkeypatch.setattr("leveret.certify.run.require", absent)
    monkeypatch.setattr("leveret.certify.by_transformers.require", absent)


def test_a_missing_transformers_is_said_and_not_hidden(
    make_form: MakeForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_transformers(monkeypatch)
    certify(make_form("a"), make_form("b"), transformers="auto", output=tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "certificate.json").read_text())["notes"]
    assert len(notes) == 1 and "transformers, which is not installed" in notes[0]


def test_a_form_that_was_asked_for_must_load(make_form: MakeForm, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_form("a")
    without_transformers(monkeypatch)
    with pytest.raises(MissingExtra):
        certify(path, f"transformers:{path}")
    with pytest.raises(ConfigError, match="nothing to compare with by transformers"):
        certify(path, make_form("b"), transformers="require")
    with pytest.raises(LeveretError, match="there is no folder"):
        certify(path, path.parent / "nowhere" / "at" / "all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forms": ["a"]}, "nothing to compare"),
        ({"forms": ["a", "a"]}, "named twice"),
        ({"forms": ["a", "b"], "sources": ["s"]}, "no card is asked for"),
        ({"forms": []}, "forms"),
    ],
)
def test_configs_that_compare_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(CertifyConfig, {"transformers": "off"} | changes, source="test")
