"""Makes the models of one claim: the one place where the name of a model becomes something that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from orchestrator.core.assignment import ModelAccess
from orchestrator.core.model_choice import ModelOptions, ModelSelection, api_of
from orchestrator.engine.ports import Model
from orchestrator.engine.providers import live
from orchestrator.engine.providers.live import Deadlines
from orchestrator.engine.providers.switching import Switching
from orchestrator.engine.providers.tagged import TaggedModel
from orchestrator.engine.providers.tracing import BY_HEADERS, Tracing

if TYPE_CHECKING:
    from orchestrator.engine.providers.anthropic import AnthropicModel
    from orchestrator.engine.providers.openai import OpenAIModel


@dataclass(frozen=True, slots=True)
class Making:
    """How models are called here. `metered`: the gateway writes their usage down."""

    options: Mapping[str, ModelOptions] = field(default_factory=dict)
    deadlines: Deadlines = live.USUAL
    tracing: Tracing = BY_HEADERS
    metered: bool = True


_USUAL = Making()


def make(name: str, access: ModelAccess, how: Making = _USUAL) -> Model:
    """One live model."""
    options = how.options.get(name, ModelOptions())
    model = _native(name, access, options, how)
    return model if options.native_tools else TaggedModel(model)


def make_selected(
    selection: ModelSelection, access: ModelAccess, how: Making = _USUAL, *, reviews: bool = False
) -> Model:
    """All models of a selection as one. `reviews`: the step looks at another's work."""
    sizes = [how.options[name].context_tokens for name in selection.models if name in how.options]
    return Switching(
        selection,
        lambda name: make(name, access, how),
        reviews=reviews,
        metered=how.metered,
        context_tokens=min((size for size in sizes if size), default=None),
    )


def _native(name: str, access: ModelAccess, options: ModelOptions, how: Making) -> Model:
    api, root = api_of(name, options), access.base_url.rstrip("/")
    if api == "messages":
        return _anthropic()(
            name,
            access.token,
            root,
            options.max_output_tokens,
            how.deadlines,
            tracing=how.tracing,
            metered=how.metered,
            context_tokens=options.context_tokens,
        )
    return _openai()(
        name,
        access.token,
        f"{root}/v1",
        api,
        options.max_output_tokens,
        how.deadlines,
        tracing=how.tracing,
        store=options.store and api == "responses",
        metered=how.metered,
        context_tokens=options.context_tokens,
    )


# The two SDKs take 0.8 and 0.3 s of processor and 40 and 13 MB, which nothing that was loaded before a fork
# shares: a process loads that of the models it asks.


def _anthropic() -> type[AnthropicModel]:
    found: type[AnthropicModel] = import_module("orchestrator.engine.providers.anthropic").AnthropicModel
    return found


def _openai() -> type[OpenAIModel]:
    found: type[OpenAIModel] = import_module("orchestrator.engine.providers.openai").OpenAIModel
    return found
