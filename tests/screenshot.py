"""A picture of a page in headless Chromium: `python -m tests.screenshot report.html docs/report.png`.

Light, 1400 pixels wide, the top of the page; in fewer colours than the browser's, for a smaller file. Options:
--width, --height (0: the whole page), --dark. Needs Debian's chromium and chromium-driver.
"""

import argparse
import base64
import io
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver

from tests.browser import browser, show
from tests.programs import find


def picture(chrome: webdriver.Chrome, width: int, height: int) -> bytes:
    """The upper part of the page that is shown, as PNG; height 0: all of it."""
    height = height or int(chrome.execute_script("return document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"])), formats=["PNG"]).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Open the page, take the picture, write it."""
    parser = argparse.ArgumentParser(description="A picture of a page in headless Chromium.")
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1760)
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    chromium, driver = find("chromium"), find("chromedriver")
    if not asked.page.is_file():
        sys.exit(f"error: {asked.page}: no such file; `make report` makes one")
    if chromium is None or driver is None:
        sys.exit("error: needs chromium and chromedriver: install Debian's packages chromium and chromium-driver")
    with browser(chromium, driver) as chrome:
        show(chrome, asked.page, asked.width, "dark" if asked.dark else "light")
        content = picture(chrome, asked.width, asked.height)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_bytes(content)
    print(f"{asked.out}: {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
