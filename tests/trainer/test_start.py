"""A start that cannot be trained is refused before anything is read, with the way out."""

import pytest

from leveret.errors import ConfigError, WeightsError
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears
from leveret.trainer.config import TrainingConfig
from leveret.trainer.start import check_start, load_start
from leveret.weights.save import save_model

CONFIG = TrainingConfig(sequence_length=64)


@pytest.fixture
def start(tmp_path, new_model):
    save_model(new_model(), tmp_path / "start")
    return tmp_path / "start"


def test_a_quantized_start_takes_an_adapter_only(tmp_path, new_model):
    model, storage = new_model(), GptqStorage(bits=4, group_size=16, symmetric=True)
    quantize_linears(model, storage)
    save_model(model, tmp_path / "four", quantization_config=storage.to_dict())
    with pytest.raises(ConfigError, match=r"four is quantized; only an adapter.*\n.*adapter=\{\}"):
        check_start(tmp_path / "four", tmp_path / "run", CONFIG)
    check_start(tmp_path / "four", tmp_path / "run", CONFIG, beside=True)


def test_rows_longer_than_the_model_reads_are_refused(tmp_path, start):
    check_start(start, tmp_path / "run", CONFIG)
    with pytest.raises(ConfigError, match=r"sequence_length is 65, .* at most 64 tokens"):
        check_start(start, tmp_path / "run", TrainingConfig(sequence_length=65))


def test_a_run_does_not_write_over_its_start(tmp_path, start):
    start.rename(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"its own result.*\n.*output="):
        check_start(tmp_path / "model", tmp_path / "link", CONFIG)


def test_a_start_with_values_that_are_no_numbers_is_named_for_what_it_is(tmp_path, new_model):
    model = new_model()
    model.layers[0].mlp.up_proj.weight.data[3, 4] = float("nan")
    save_model(model, tmp_path / "start")
    with pytest.raises(WeightsError, match=r"start cannot be trained on: 1 .*: model\.layers\.0\.mlp\.up_proj\.weight"):
        load_start(tmp_path / "start", dtype="float32")
