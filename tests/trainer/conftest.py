"""A tiny model and rows of random documents, for everything that needs a step."""

import contextlib
import importlib.util
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights

VOCABULARY = 61


@dataclass
class ToyRow:
    input_ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    document_ids: np.ndarray
    weights = None  # of the class, so that vars(row) has arrays only


class ToyOrder:
    """Rows of one or more documents of uneven lengths, padded; what a mixture is to the trainer."""

    def __init__(self, num_rows=40, length=24, seed=0, documents=2):
        self.rows = [self._row(np.random.default_rng([seed, i]), length, documents) for i in range(num_rows)]

    @staticmethod
    def _row(random, length, documents):
        row = ToyRow(*(np.full(length, fill, np.int32) for fill in (0, -100, 0, -1)))
        start = 0
        for document in range(documents):
            size = int(random.integers(3, max(4, (length - start) // 2)))
            stop = min(start + size, length)
            ids = random.integers(1, VOCABULARY, stop - start)
            row.input_ids[start:stop] = ids
            row.targets[start : stop - 1] = ids[1:]
            row.positions[start:stop] = np.arange(stop - start)
            row.document_ids[start:stop] = document
            start = stop
        return row

    def row(self, place):
        return self.rows[place % len(self.rows)]

    def key(self, place):
        return f"toy:{place % len(self.rows)}"


def make_model(seed=0, **changes):
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    model = Decoder(ModelConfig(**{**sizes, **changes}))
    init_weights(model, seed)
    return model


@pytest.fixture
def new_model():
    return make_model


@pytest.fixture
def new_order():
    return ToyOrder


@pytest.fixture
def small_files_only():
    """A block in which the system refuses to let any file grow beyond some bytes, as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def groups():
    """Groups of processes; see groups.py."""
    spec = importlib.util.spec_from_file_location("groups", Path(__file__).with_name("groups.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    groups = module.Groups()
    yield groups
    groups.close()


@pytest.fixture
def group(groups, tmp_path):
    """What each member of a group returns from a function; all must end well."""

    def run(function, processes, **arguments):
        codes, returned = groups.run(function, processes, tmp_path / "group", **arguments)
        assert not any(codes), "\n".join(map(str, returned))
        return returned

    return run
