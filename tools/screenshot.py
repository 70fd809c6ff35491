"""A picture of a page in headless Chromium: `python tools/screenshot.py report.html docs/report.png`.

Light, 1400 pixels wide, the top of the page; in fewer colours than the browser's, for a smaller file. Options:
--width, --height (0: the whole page), --dark. Needs Debian's chromium and chromium-driver.
"""

import argparse
import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# As root Chromium has no sandbox; the rest keeps it from asking anything of the network.
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


def browser(chromium: str, driver: str, profile: str) -> webdriver.Chrome:
    """A headless Chromium that keeps a log of its console and of its requests. profile: an empty folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(executable_path=driver))  # named: nothing is downloaded


def show(chrome: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    """Open a page at a width, light or dark, as a person's settings would have it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.get(page.resolve().as_uri())


def picture(chrome: webdriver.Chrome, width: int, height: int) -> bytes:
    """The upper part of the page that is shown, as PNG; height 0: all of it."""
    height = height or int(chrome.execute_script("return document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"])), formats=["PNG"]).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Open the page, take the picture, write it."""
    parser = argparse.ArgumentParser(description="A picture of a page in headless Chromium.")
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1500)
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not asked.page.is_file():
        sys.exit(f"error: {asked.page}: no such file; `make report` makes one")
    if chromium is None or driver is None:
        sys.exit("error: needs chromium and chromedriver: install Debian's packages chromium and chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chrome = browser(chromium, driver, profile)
        try:
            show(chrome, asked.page, asked.width, "dark" if asked.dark else "light")
            content = picture(chrome, asked.width, asked.height)
        finally:
            chrome.quit()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_bytes(content)
    print(f"{asked.out}: {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
