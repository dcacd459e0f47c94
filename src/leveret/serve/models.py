"""The models a server answers with: one, and any number of adapters for it, each under a name of its own.

A request chooses by `model`. Adapters share the weights of the model (`weights/adapted.py`), so each costs the memory
of its own matrices only, and its engine (`engine/beside.py`), so requests for different ones are answered together. One
that gives the model tokens of its own makes another shape of it, and has an engine of its own. Adapters are given at
the start (`--adapter poet=models/poet-lora`) or loaded and unloaded while the server runs; what is being answered with
an adapter that is unloaded is answered to the end.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from leveret.chat.template import ChatTemplate
from leveret.engine.backend import Backend
from leveret.engine.beside import Beside, refusal
from leveret.engine.engine import Engine
from leveret.engine.prompting import find_parts
from leveret.engine.stats import EngineStats
from leveret.engine.text import TextModel
from leveret.errors import ConfigError, LeveretError, RequestError
from leveret.hub import is_adapter, model_under, resolve_model
from leveret.model.lora import lora_modules
from leveret.serve.config import ServeConfig
from leveret.weights.adapted import adapted
from leveret.weights.fingerprint import fingerprint_of


class ServedModels:
    """Models by name; the first one is the server's own."""

    def __init__(self, model: TextModel, config: ServeConfig) -> None:
        """Raises ConfigError or WeightsError when an adapter or the template of the config cannot be used."""
        self._config = config
        self._own = model
        self.name = model.name
        """The name of the server's own model."""
        self._models = {self.name: model}
        self._folders: dict[str, str] = {}
        self._changing = threading.Lock()
        for name, folder in config.adapters.items():
            self.load(name, folder)

    def find(self, name: str | None) -> TextModel:
        """The model of this name; the server's own for None. RequestError when there is none."""
        model = self._models.get(self.name if name is None else name)
        if model is None:
            known = ", ".join(map(repr, self._models))
            raise RequestError(
                f"there is no model {name!r}", param="model", code="model_not_found", hint=f"it serves {known}"
            )
        return model

    def cards(self) -> list[dict[str, Any]]:
        """What `GET /v1/models` lists."""
        return [self.card(name) for name in tuple(self._models)]

    def card(self, name: str) -> dict[str, Any]:
        """What `GET /v1/models/NAME` says; RequestError when there is no such model."""
        model = self.find(name)
        card = {"id": name, "object": "model", "created": 0, "owned_by": "leveret"}
        card |= {"max_model_len": model.engine.context_tokens}
        return card if model is self._own else card | {"parent": self.name, "root": self._folders[name]}

    def engine_stats(self) -> dict[str, EngineStats]:
        """What each engine has done and holds, by the model that it is the engine of."""
        engines = {name: model.engine for name, model in tuple(self._models.items())}
        return {name: engine.stats for name, engine in engines.items() if engine.runs_in is engine}

    def load(self, name: str, folder: str) -> None:
        """Serve the adapter in a folder of this machine under a name.

        Raises ConfigError, WeightsError and the like, and RequestError when the name is taken.
        """
        if not is_adapter(Path(folder)):
            raise ConfigError(f"{folder} is no folder of an adapter: it has no adapter_config.json")
        if lora_modules(self._own.model):
            raise ConfigError(
                f"{self.name} is itself an adapter on a model", hint="serve the model, and both as its adapters"
            )
        with self._changing:
            if not name or name in self._models:
                why = "is served already" if name else "is empty"
                raise RequestError(f"the adapter's name {name!r} {why}", param="lora_name", code="invalid_value")
            self._models[name] = self._adapted(name, Path(folder))
            self._folders[name] = folder

    def unload(self, name: str) -> None:
        """Serve an adapter no longer; waits while another is loaded. RequestError when there is none of this name."""
        with self._changing:
            if name not in self._folders:
                raise RequestError(f"there is no adapter {name!r}", param="lora_name", code="model_not_found")
            del self._models[name], self._folders[name]

    def _adapted(self, name: str, folder: Path) -> TextModel:
        under = model_under(resolve_model(self._config.model))
        decoder = adapted(self._own.model, folder, fingerprint=fingerprint_of(under))
        engine = self._own.engine
        shares = isinstance(engine, Engine) and refusal(engine.model, decoder) is None
        runs = engine.beside(decoder) if isinstance(engine, Engine) and shares else decoder
        return configured(TextModel(runs, **vars(find_parts((folder, under))), name=name), self._config)


def configured(model: TextModel, config: ServeConfig, *, name: str | None = None) -> TextModel:
    """A model like this one with the template, the context and the cache that the config asks for.

    `name`: what it is called from here on, in the API and in the metrics; None: as it was. Raises ConfigError or
    TemplateError when it cannot have them.
    """
    defaults = model.defaults
    if (most := config.max_answer_tokens) is not None:
        defaults = replace(defaults, max_tokens=min(most, defaults.max_tokens))
    engine = _engine(model, config)
    model = TextModel(
        engine,
        model.tokenizer,
        template=model.template if config.chat_template is None else _template(config.chat_template, model),
        tools=model.tools,
        defaults=defaults,
        name=name or model.name,
    )
    return model


def _engine(model: TextModel, config: ServeConfig) -> Backend:
    """What runs a model for the server: our engine as the config has it, or the program that it has been given to."""
    tokens = config.max_model_len
    if isinstance(model.engine, Beside):
        return model.engine
    if not isinstance(model.engine, Engine):
        given = [*(f"engine.{key}" for key in config.engine.changed), *["max_model_len"] * (tokens is not None)]
        if given:
            raise ConfigError(f"{', '.join(given)}: for our own engine, and another program runs {model.name}")
        return model.engine
    longest = model.model.config.max_position_embeddings
    if tokens is not None and tokens > longest:
        raise ConfigError(f"max_model_len is {tokens}, but the model's context holds {longest} tokens")
    return Engine(model.model, config.engine, context_tokens=tokens)


def _template(path: Path, model: TextModel) -> ChatTemplate:
    try:
        source = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: {path} cannot be read: {error}") from None
    return ChatTemplate(source, name=path.name, variables=model.tokenizer.special_tokens)


def explain(error: LeveretError, folder: str) -> RequestError:
    """What is wrong with an adapter, as an answer to the client who asked to load it."""
    if isinstance(error, RequestError):
        return error
    return RequestError(f"{folder}: {error}", param="lora_path", code="invalid_adapter")
