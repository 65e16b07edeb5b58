"""A model of a Hugging Face hub, as a folder on this machine: through the hub's own client and into its own cache.

Knows hub ids and what can go wrong on the way to them. Which hub, and with which token, is the client's to know
(``HF_ENDPOINT``, ``HF_TOKEN``); only files that a conversion reads are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from paceline.wire.errors import ModelNotFound, PacelineError, UnsupportedModel

Steps = Callable[[str, int, int], None]
"""Called with ``(what, done, total)``; total 0 where it is not known."""

FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
LEFT_OUT = ("*/*", "consolidated*.safetensors")
"""Other forms of the same weights that some models ship beside them."""

_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


class HubUnavailable(PacelineError):
    """The hub cannot be reached, or broke off, and its cache on this machine does not have the model either."""

    code: ClassVar[str] = "hub_unavailable"


class HubRefused(PacelineError):
    """The hub gives the model only to those who agreed to its terms, and who say who they are."""

    code: ClassVar[str] = "hub_refused"


def parse(text: str) -> tuple[str, str | None] | None:
    """``org/name`` or ``org/name@revision`` → repository and revision; None for anything else."""
    found = _ID.fullmatch(text)
    return None if found is None else (found["repo"], found["revision"])


def snapshot(repo: str, revision: str | None, tell: Steps, endpoint: str | None = None) -> Path:
    """The folder with the model's files; its name is the commit. What is here already is not fetched again.

    `revision`: a branch, tag or commit; None: the hub's main branch. Raises ModelNotFound, HubRefused, HubUnavailable,
    UnsupportedModel where the model has no safetensors files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its HTTP library's
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    shown = repo if revision is None else f"{repo}@{revision}"
    tell("download", 0, 0)
    try:
        found = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(FILES),
            ignore_patterns=list(LEFT_OUT),
            tqdm_class=_bar(tell),
            endpoint=endpoint,
        )
    except GatedRepoError as error:
        cure = "agree to its terms on its page at the hub, and set HF_TOKEN to a token of that account"
        raise HubRefused(f"the hub does not give {shown} to everybody", cure=cure) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{repo} has no revision {revision!r}", cure="name a branch, tag or commit") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        cure = "check the spelling; a private model needs HF_TOKEN"
        raise ModelNotFound(f"the hub knows no model {shown}", cure=cure) from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        cure = "check the network and HF_ENDPOINT, and try again: what has come is kept"
        why = str(error).strip().splitlines()[0]
        raise HubUnavailable(f"{shown} could not be fetched: {why}", cure=cure) from error
    folder = Path(found)
    if not any(folder.glob("*.safetensors")):
        raise UnsupportedModel(
            f"{shown} has no safetensors files", cure="download another form of it, and publish that folder or file"
        )
    return folder


def _bar(tell: Steps) -> Any:
    """A progress bar in the client's eyes; of those that count bytes, the one that is furthest is told."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    furthest = 0

    class Bar(tqdm):
        """Shows nothing itself."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            self.whole = kwargs.get("unit") == "B"
            self.done = 0
            self.total = kwargs.get("total")

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.done += int(n or 0)
            if self.whole and self.done > furthest:
                furthest = self.done
                tell("download", furthest, int(self.total or 0))

    return Bar
