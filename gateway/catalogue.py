"""Which models the swarm serves now, and the model behind a name; refuses unknown names before a ring is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions
from paceline.gateway.errors import BadField
from paceline.gateway.replies import ModelCard, ModelFacts
from paceline.wire.errors import ModelNotFound
from paceline.wire.offers import Offer, Service


class Catalogue:
    """`created`: unix seconds that model cards carry (offers come and go; a model has no date of its own)."""

    def __init__(self, core: ClientCore, created: int) -> None:
        self._core = core
        self._created = created

    async def check(self, name: str) -> None:
        """Raises ModelNotFound where nobody offers `name` but others are offered."""
        offers = await self._core.offers()
        names = {service.model for offer in offers for service in offer.services}
        if names and name not in names:
            raise ModelNotFound(f"no node serves {name!r}", cure=f"served here: {', '.join(sorted(names))}")

    async def cards(self) -> list[ModelCard]:
        """One card a model."""
        offers = await self._core.offers()
        names = sorted({service.model for offer in offers for service in offer.services})
        return [ModelCard(id=name, created=self._created, paceline=await self._facts(name, offers)) for name in names]

    async def _facts(self, name: str, offers: Sequence[Offer]) -> ModelFacts:
        services = [service for offer in offers for service in offer.services if service.model == name]
        view = await self._core.swarm.view(name)
        return ModelFacts(
            ready=bool(view.complete()),
            layers=services[0].layers,
            max_context=min(service.max_context for service in services),
            nodes=sum(any(_is(service, name) for service in offer.services) for offer in offers),
            revisions=sorted({service.revision.hex() for service in services}),
            numerics=sorted({service.numerics for service in services}),
        )

    async def require_vocabulary(self, options: GenerateOptions, prompts: Sequence[str | list[int]]) -> None:
        """Raises BadField for token ids that the model does not have: a node would refuse them much later."""
        highest = max((token for prompt in prompts if not isinstance(prompt, str) for token in prompt), default=-1)
        if highest < 0:
            return
        vocabulary = (await self._core.model(options)).manifest.vocab
        if highest >= vocabulary:
            raise BadField(f"token id {highest} is not one of the {vocabulary} of {options.model}", param="prompt")

    async def knows_tools(
        self, options: GenerateOptions, conversation: list[dict[str, Any]], tools: list[dict[str, Any]]
    ) -> bool:
        """False where the model's template says the same with tools and without them."""
        tokenizer = (await self._core.model(options)).tokenizer
        return tokenizer.chat(conversation, tools=tools) != tokenizer.chat(conversation)


def _is(service: Service, name: str) -> bool:
    return service.model == name
