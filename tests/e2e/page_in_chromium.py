"""The web page in a real browser, over real node processes: chat streams, the map is true, a killed node costs no text.

Run by `make browser-test`, not by `make test`: it needs a browser, which nothing here installs. Pictures go to the
folder that ``SCREENSHOTS`` names (`make screenshots` writes those in docs/).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

from paceline.cli.local_swarm import LocalSwarm, local_swarm
from paceline.client import Client
from paceline.engine import default_model

CURE = "no Chromium found: install one (Debian: apt-get install chromium), or name it in the variable CHROMIUM"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUESTION = "Why is a group of cyclists riding in a line faster than one alone?"
DESKTOP, PHONE = (1280, 900), (390, 844)
PATIENCE_MS = 60_000
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", "build/screenshots"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a network of its own."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, CURE
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def three(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Three thirds of the model, on three nodes."""
    with local_swarm(home, tmp_path_factory.mktemp("swarm"), default_model.NAME, ["1/3", "2/3", "3/3"]) as running:
        yield running


@pytest.fixture(scope="module")
def url(three: LocalSwarm, home: Path) -> Iterator[str]:
    """`paceline gateway` as a process."""
    command = [sys.executable, "-m", "paceline.cli", "gateway", "--port", "0", "--swarm", three.bootstrap[0]]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PACELINE_HOME": str(home)}
    )
    try:
        assert process.stderr is not None
        yield next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the browser complains of while a page runs; nothing, in the end."""
    heard: list[str] = []
    yield heard
    assert heard == []


def opened(browser: Browser, url: str, size: tuple[int, int], complaints: list[str], *, dark: bool = False) -> Page:
    """The page, once the swarm is in sight."""
    viewport: ViewportSize = {"width": size[0], "height": size[1]}
    scheme: Literal["dark", "light"] = "dark" if dark else "light"
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(url) else complaints.append(request.url))
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    expect(page.locator("#health")).to_have_attribute("data-state", "good", timeout=PATIENCE_MS)
    return page


def ask(page: Page, question: str, tokens: int) -> None:
    """Settings as a person would make them, and a question, by keyboard."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill(str(tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Done").click()
    page.keyboard.press("/")
    page.keyboard.type(question)
    page.keyboard.press("Enter")


def count(page: Page) -> int:
    """Tokens of the answer so far."""
    text = page.locator("#fact-tokens").inner_text()
    return int(text) if text.isdecimal() else 0


def wait_for_tokens(page: Page, least: int) -> None:
    """Until the answer has so many tokens, or has ended."""
    page.wait_for_function(
        """least => Number(document.getElementById("fact-tokens").textContent) >= least
                    || !document.querySelector(".turn.live")""",
        arg=least,
    )


def answer(page: Page) -> Locator:
    return page.locator(".turn.model .said").last


def test_the_map_shows_three_nodes_and_their_layers(
    browser: Browser, three: LocalSwarm, home: Path, url: str, complaints: list[str]
) -> None:
    with Client(three.bootstrap, home=home) as client:
        spans = {node["peer"]: node["services"][0]["span"].split(":") for node in client.status()}
    page = opened(browser, url, DESKTOP, complaints)
    nodes = page.locator("#map .node")
    expect(nodes).to_have_count(3)
    for at, node in enumerate(three.nodes):
        start, end = spans[node.peer]
        expect(nodes.nth(at).locator(".name b")).to_have_text(node.name)
        expect(nodes.nth(at).locator(".peer")).to_have_text(node.peer[-8:])
        expect(nodes.nth(at).get_by_role("img", name=f"layers {start} to {int(end) - 1}", exact=True)).to_be_visible()
    expect(page.locator("#map .model-name")).to_contain_text("every layer held")
    expect(page.locator("#links table tr")).to_have_count(4)
    expect(page.locator("#join")).to_contain_text("paceline node --swarm /ip4/")
    page.close()


def test_chat_streams_and_tells_where_the_time_went(browser: Browser, url: str, complaints: list[str]) -> None:
    page = opened(browser, url, DESKTOP, complaints)
    ask(page, QUESTION, 40)
    wait_for_tokens(page, 8)
    early = answer(page).inner_text()
    expect(page.locator("#fall rect.compute")).to_have_count(3)
    wait_for_tokens(page, 40)
    expect(page.locator(".turn.live")).to_have_count(0)
    whole = answer(page).inner_text()
    assert whole.startswith(early.rstrip("… "))
    assert len(whole) > len(early) > 0
    expect(page.locator("#ring")).to_have_attribute("aria-label", re.compile(r"node-1 layers 0 to \d+, then node-2"))
    page.close()


def test_a_node_is_killed_and_the_page_shows_it_while_the_text_goes_on(
    browser: Browser, three: LocalSwarm, url: str, complaints: list[str]
) -> None:
    page = opened(browser, url, DESKTOP, complaints)
    ask(page, QUESTION, 120)
    wait_for_tokens(page, 120)
    expect(page.locator(".turn.live")).to_have_count(0)
    undisturbed = answer(page).inner_text()
    three.wait_ready([three.start("spare", "2/3")])
    expect(page.locator("#map .node")).to_have_count(4)
    page.get_by_role("button", name="New conversation").click()
    ask(page, QUESTION, 120)
    wait_for_tokens(page, 30)
    said = page.locator("#ring").get_attribute("aria-label") or ""
    second = said.split(", then ")[1].split()[0]
    next(node for node in three.nodes if node.name == second).kill()
    told = page.locator("#failovers li")
    expect(told).to_have_count(1, timeout=PATIENCE_MS)
    expect(told).to_contain_text(f"lost {second}")
    before = count(page)
    wait_for_tokens(page, before + 30)
    assert count(page) > before
    page.screenshot(path=SCREENSHOTS / "desktop.png")
    wait_for_tokens(page, 120)
    expect(page.locator(".turn.live")).to_have_count(0)
    expect(page.locator(".turn.model .meta .mended").last).to_have_text("1 failover, no token lost")
    assert answer(page).inner_text() == undisturbed
    page.close()


def test_on_a_phone_and_in_the_dark(browser: Browser, url: str, complaints: list[str]) -> None:
    phone = opened(browser, url, PHONE, complaints)
    ask(phone, "Write four lines about a train at night.", 60)
    wait_for_tokens(phone, 30)
    phone.screenshot(path=SCREENSHOTS / "phone-chat.png")
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.get_by_role("tab", name="Swarm").click()
    expect(phone.locator("#map .node").first).to_be_visible()
    phone.screenshot(path=SCREENSHOTS / "phone-swarm.png")
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.close()
    dark = opened(browser, url, DESKTOP, complaints, dark=True)
    ask(dark, "Explain what a hash function is to a child.", 60)
    wait_for_tokens(dark, 45)
    dark.screenshot(path=SCREENSHOTS / "dark.png")
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
    dark.close()
