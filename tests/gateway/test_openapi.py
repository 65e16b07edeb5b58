"""The published schema names every route, and every record that is sent fits it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

from paceline.gateway.app import PAGE
from tests.gateway.asking import asking
from tests.gateway.toying import text_swarm


async def test_the_schema_is_true_to_the_routes(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        schema = (await ask.get("/openapi.json")).json
        assert schema["openapi"].startswith("3.1")
        operations = {(path, method) for path, item in schema["paths"].items() for method in item}
        assert operations == {(o.path, o.method.lower()) for o in ask.gateway.operations}
        for path, method in operations:
            answer = ask.begin(method.upper(), re.sub(r"\{\w+\}", "none", path), {} if method == "post" else None)
            await answer.over.wait()
            assert str(answer.status) in schema["paths"][path][method]["responses"]
            assert answer.json["error"]["code"] != "not_found" if method == "post" else True
        references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
        assert references <= set(schema["components"]["schemas"])


class Links(HTMLParser):
    """What a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


async def test_the_page_needs_nobody_else(tmp_path: Path, autojump_clock: object) -> None:
    static = files("paceline.gateway") / "static"
    assert {path.name for path in static.iterdir()} == set(PAGE)
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        index = await ask.get("/")
        assert "default-src 'self'" in index.headers["content-security-policy"]
        links = Links()
        links.feed(index.body.decode())
        loaded = [link for link in links.found if not link.startswith("#")]
        assert loaded
        for link in loaded:
            assert (await ask.get(f"/{link}")).status == 200
        for name in PAGE:
            text = (static / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|@import|innerHTML|eval\(|style=\"", text), name
        assert (await ask.get("/static/..%2Fapp.py")).status == 404


async def test_the_map_shows_every_node_and_layer(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        await swarm.node("node-4", (0, 8))
        shown = (await ask.get("/paceline/swarm")).json
        assert sorted(node["agent"] for node in shown["nodes"]) == [f"paceline/node-{n}" for n in (1, 2, 3, 4)]
        (model,) = shown["models"]
        assert model["replicas"] == [2] * 8 + [1] * 4
        assert shown["join"].startswith("paceline node --swarm /")
        swarm.freeze("node-4")
        assert (await ask.get("/paceline/swarm")).json == shown  # a second has not passed
        import trio

        await trio.sleep(1.1)
        again = (await ask.get("/paceline/swarm")).json
        silent = [node["agent"] for node in again["nodes"] if "silent" in node]
        assert silent in (["paceline/node-4"], [])
