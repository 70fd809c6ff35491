"""A real browser, headless, for the tests and pictures of pages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# As root Chromium has no sandbox; the rest keeps it from asking anything of the network on its own account.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

# Text below a contrast of 4.5, and lines and points of charts below 3 (WCAG 2.1, 1.4.3 and 1.4.11); how many were seen.
CONTRAST = """
const parse = c => { const n = c.match(/[0-9.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const linear = v => v <= 0.03928 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c;
    if (c[3] > 0) throw e.outerHTML;
  }
  return [255, 255, 255];
};
const bad = []; let seen = 0;
const look = (colour, element, least, what) => {
  const [a, b] = [light(parse(colour)), light(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < least) bad.push(`${ratio.toFixed(2)} ${colour} ${what}`);
  seen++;
};
document.querySelectorAll('details').forEach(d => d.open = true);
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement, s = getComputedStyle(e);
  if (e.localName === 'title') continue;  // shown beside the pointer, by the browser
  if (walk.currentNode.data.trim()) look(e.closest('svg') ? s.fill : s.color, e, 4.5, walk.currentNode.data);
}
document.querySelectorAll('svg .line, svg .span').forEach(e => look(getComputedStyle(e).stroke, e, 3, e.outerHTML));
document.querySelectorAll('svg .dot').forEach(e => look(getComputedStyle(e).fill, e, 3, e.outerHTML));
return {bad, seen};
"""


@contextmanager
def browser(chromium: str, driver: str) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that keeps a log of its console and of its requests."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))  # so none is downloaded
        try:
            yield chrome
        finally:
            chrome.quit()


def show(chrome: webdriver.Chrome, page: Path | str, width: int = 1400, scheme: str = "light") -> None:
    """Open a page, a file or a URL, at a width, light or dark, as a person's settings would have it.

    Starts the logs anew.
    """
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.get("about:blank")
    for log in ("browser", "performance"):
        _log(chrome, log)
    chrome.get(page if isinstance(page, str) else page.resolve().as_uri())


def console(chrome: webdriver.Chrome) -> list[str]:
    """What the console has got since `show`."""
    return [f"{entry['level']}: {entry['message']}" for entry in _log(chrome, "browser")]


def requests(chrome: webdriver.Chrome) -> list[str]:
    """The addresses that were asked for since `show`, blocked ones too; without data: URIs, which ask nobody."""
    events = [json.loads(entry["message"])["message"] for entry in _log(chrome, "performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "blob:"))]


def _log(chrome: webdriver.Chrome, kind: str) -> list[dict[str, Any]]:
    """What a log has got since it was last read."""
    entries: list[dict[str, Any]] = chrome.execute("getLog", {"type": kind})["value"]
    return entries
