"""Takes the pictures in docs/screenshots of a gateway that runs: `python -m tests.gateway.screenshots URL FOLDER`.

A program, not a test: it needs a browser (Debian's chromium) and a swarm with a model that talks.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
QUESTION = "Why is a group of cyclists riding in a line faster than one alone?"
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def opened(browser: Browser, url: str, size: dict[str, int], scheme: str = "light") -> Page:
    """The page with the swarm in sight; complains of anything that the browser complains of."""
    page = browser.new_page(
        viewport={"width": size["width"], "height": size["height"]},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page.on("console", lambda message: print(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: print(f"page error: {error}"))
    page.goto(url)
    page.wait_for_selector(".pill[data-state=good]", timeout=20_000)
    return page


def ask(page: Page, question: str, tokens: int = 160) -> None:
    """Settings as a person would make them, and a question."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill(str(tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Message", exact=True).fill(question)
    page.keyboard.press("Enter")


def tokens(page: Page) -> int:
    """Tokens of the running answer."""
    text = page.locator("#fact-tokens").inner_text()
    return int(text) if text.isdecimal() else 0


def until(page: Page, count: int) -> None:
    """Wait for `count` tokens of the running answer, or its end."""
    while tokens(page) < count and page.locator(".turn.live").count():
        page.wait_for_timeout(100)


def main() -> None:
    """All pictures. With --node, ends the process of the ring's second stage in the middle of an answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--node", action="append", default=[], metavar="NAME=PID")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = opened(browser, given.url, DESKTOP)
        ask(page, QUESTION)
        until(page, 30)
        pids = dict(each.split("=") for each in given.node)
        if pids:
            second = (page.locator("#ring").get_attribute("aria-label") or "").split(", then ")[1].split()[0]
            os.kill(int(pids[second]), signal.SIGKILL)
            before = tokens(page)
            page.wait_for_selector("#failovers li", timeout=60_000)
            until(page, before + 20)
            print("failover:", page.locator("#failovers li").first.inner_text())
        page.screenshot(path=given.folder / "desktop.png")
        phone = opened(browser, given.url, PHONE)
        ask(phone, "Write four lines about a train at night.", 80)
        until(phone, 20)
        phone.screenshot(path=given.folder / "phone-chat.png")
        phone.get_by_role("tab", name="Swarm").click()
        phone.wait_for_timeout(1500)
        phone.screenshot(path=given.folder / "phone-swarm.png")
        dark = opened(browser, given.url, DESKTOP, "dark")
        ask(dark, "Explain what a hash function is to a child.")
        until(dark, 60)
        dark.screenshot(path=given.folder / "dark.png")
        browser.close()


if __name__ == "__main__":
    main()
