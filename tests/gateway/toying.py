"""A toy swarm that speaks text: a manifest with a tokenizer of characters, and shards that say what a test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from paceline.dht.memory import MemoryDirectory
from paceline.engine.shard import Output, Work
from paceline.engine.toy import ToyModel, ToyShard
from paceline.net.identity import Identity
from paceline.node.config import NodeConfig
from paceline.node.engine_thread import InlineEngine
from paceline.node.grammar import Grammars
from paceline.node.node import Node
from paceline.node.services import LoadedService
from paceline.store.manifest import Block, Manifest
from paceline.store.store import Store
from paceline.wire.ids import Span
from tests.swarming import LAYERS, MEASURED, ToySwarm

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n", "é", "…", "自"]
VOCABULARY = (*SPECIAL, *CHARACTERS)
EOS = VOCABULARY.index("<|im_end|>")
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
PLAIN_TEMPLATE = TEMPLATE.replace("{% if tools %}", "{% if false %}")


def tokenizer_json() -> bytes:
    """A `tokenizers` file: every character is a token, and so is each special word; unknown characters are "…"."""
    special = [
        {
            "id": index,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": "tool" not in word,
        }
        for index, word in enumerate(SPECIAL)
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "…",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {word: index for index, word in enumerate(VOCABULARY)},
        "merges": [],
    }
    parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None}
    parts |= {"pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model}
    return json.dumps(parts).encode()


def byte_level_json() -> bytes:
    """The same ids as a byte-level tokenizer has them: the kind that grammars know."""
    made = json.loads(tokenizer_json())
    alphabet = bytes_to_unicode()
    words = ["".join(alphabet[byte] for byte in word.encode()) for word in VOCABULARY]
    made["model"]["vocab"] = {word: index for index, word in enumerate(words)}
    made["model"]["unk_token"] = None
    made["pre_tokenizer"] = made["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return json.dumps(made).encode()


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's alphabet: printable bytes are themselves, the others follow from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def ids(text: str) -> list[int]:
    """Token ids of text without special words."""
    return [VOCABULARY.index(character) for character in text]


def script(text: str) -> list[int]:
    """Token ids of an answer, tool-call words as their own tokens, ended by end-of-sequence."""
    found: list[int] = []
    while text:
        word = next((word for word in SPECIAL if text.startswith(word)), text[0])
        found.append(VOCABULARY.index(word))
        text = text[len(word) :]
    return [*found, EOS]


class ScriptedShard(ToyShard):
    """A toy tail that says `script`, then end-of-sequence for ever. Without one it says toy nonsense."""

    script: Sequence[int] = ()

    def step(self, batch: Sequence[Work]) -> list[Output]:
        """As the toy, with another token where there is a script."""
        return [self._scripted(work, output) for work, output in zip(batch, super().step(batch), strict=True)]

    def _scripted(self, work: Work, output: Output) -> Output:
        if not self.script or output.sampled is None or work.sample is None:
            return output
        at = work.sample.index - work.sample.prompt_length
        token = self.script[at] if at < len(self.script) else EOS
        return replace(output, sampled=replace(output.sampled, token=token))


@dataclass
class TextSwarm(ToySwarm):
    """As ToySwarm, with text. `say`: what every tail answers from now on."""

    model: ToyModel = field(
        default_factory=lambda: ToyModel(layers=LAYERS, vocab=len(VOCABULARY), max_context=512, eos_ids=(EOS,))
    )
    template: str = TEMPLATE
    grammars: bool = True
    shards: list[ScriptedShard] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def manifest(self) -> Manifest:
        """Of the toy's revision, stored where the client looks."""
        store, empty = self.store, Block("0" * 64, 0)
        config = json.dumps({"chat_template": self.template, "eos_token": "<|im_end|>"}).encode()
        made = Manifest(
            name="toy",
            family="toy",
            architecture="Toy",
            config={},
            dtype="i64",
            hidden=4,
            vocab=len(VOCABULARY),
            max_context=512,
            layers=(empty,) * LAYERS,
            embed=empty,
            head=empty,
            eos_ids=(EOS,),
            tokenizer=store.put(tokenizer_json()),
            tokenizer_config=store.put(config),
        )
        store.put_manifest(made)
        return made

    def say(self, text: str) -> None:
        """Every tail answers `text` from now on."""
        for shard in self.shards:
            shard.script = script(text)

    async def node(
        self,
        name: str,
        *spans: tuple[int, int],
        shadow: bool = False,
        config: NodeConfig | None = None,
        kv_positions: int = 1 << 16,
    ) -> Node:
        """Start a node that serves `spans` of the revision with the tokenizer, and wait until it is announced."""
        revision, identity = self.manifest().revision, Identity.ephemeral()
        shards = [ScriptedShard(self.model, Span(*span), kv_positions) for span in spans]
        self.shards += shards
        node = Node(
            self.network.transport(identity.peer),
            MemoryDirectory(self.swarm, identity),
            [LoadedService("toy", revision, shard, MEASURED, shadow, self._grammars()) for shard in shards],
            config or NodeConfig(agent=f"paceline/{name}"),
            unix_time=self.swarm.clock,
            engine=InlineEngine(),
        )
        self._run(name, node)
        await node.ready.wait()
        return node

    def _grammars(self) -> Grammars | None:
        path = self.folder / "byte-level.json"
        path.write_bytes(byte_level_json())
        return Grammars(lambda: path, len(VOCABULARY), (EOS,)) if self.grammars else None

    def _run(self, name: str, node: Node) -> None:
        import trio

        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await node.run()

        self.nursery.start_soon(run)
        self.nodes[name], self.scopes[name] = node, scope


@asynccontextmanager
async def text_swarm(
    folder: Path, *, template: str = TEMPLATE, start: bool = True, grammars: bool = True
) -> AsyncIterator[TextSwarm]:
    """A swarm of three nodes that cover the toy; with `start` false an empty one."""
    import trio

    async with trio.open_nursery() as nursery:
        swarm = TextSwarm(nursery, folder, template=template, grammars=grammars)
        for number in range(3 if start else 0):
            await swarm.node(f"node-{number + 1}", (4 * number, 4 * number + 4))
        yield swarm
        nursery.cancel_scope.cancel()
