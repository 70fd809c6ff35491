"""`dvc plots show` and `dvc plots diff` in a real headless Chromium, without a request to anywhere."""

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from review import offline_plots
from stages.common.errors import UserError
from tests.browser import browser, console, requests, show
from tests.clones import Clone
from tests.programs import need

# Of each plot that Vega has drawn: how many lines, symbols, … of data there are in it.
DRAWN = """
const marks = '.mark-line path, .mark-symbol path, .mark-rect path, .mark-text.role-mark text';
return [...document.querySelectorAll('.vega-embed svg.marks')].map(plot => plot.querySelectorAll(marks).length);
"""
PLOTS = 5  # in dvc.yaml, but for the pictures
PICTURES = 2


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with browser(need("chromium", "chromium"), need("chromium-driver", "chromedriver")) as found:
        yield found


@pytest.fixture(scope="module")
def vega() -> ModuleType:
    """The package with the scripts; as with a program that is missing, without it the test fails in CI."""
    if find_spec("vl_convert") is None:
        message = "needs the package vl-convert-python"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return import_module("vl_convert")


@pytest.fixture
def offline(vega: ModuleType, clone: Clone) -> Iterator[Clone]:
    """The clone, after `python -m review.offline_plots`."""
    told = clone.run(sys.executable, "-m", "review.offline_plots")
    assert told.startswith(".dvc/tmp/plots.html: ")
    yield clone
    (clone.path / ".dvc/config.local").unlink()
    (clone.path / ".dvc/tmp/plots.html").unlink()


def draws(chrome: webdriver.Chrome, page: Path, sides: int) -> None:
    """Each plot is drawn, each picture there, and nothing was asked for but files of the page."""
    show(chrome, page)
    WebDriverWait(chrome, 600).until(lambda _: len(chrome.execute_script(DRAWN)) == PLOTS)
    drawn = chrome.execute_script(DRAWN)
    assert all(drawn), drawn
    assert max(drawn) > sides * 100  # the squares of the confusion matrix
    widths = chrome.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == sides * PICTURES
    assert all(each > 0 for each in widths)
    asked = requests(chrome)
    assert asked[0] == page.as_uri()
    assert all(url.startswith(page.parent.as_uri()) for url in asked), asked
    # Vega warns that DVC's templates name the version before its own; an error is another thing.
    assert [line for line in console(chrome) if not line.startswith("WARNING: ")] == []


def test_both_pages_draw_without_a_network(offline: Clone, chrome: webdriver.Chrome) -> None:
    page = offline.path / "dvc_plots/index.html"
    offline.dvc("plots", "show")
    assert "cdn" not in page.read_text(encoding="utf-8")[:2000]
    draws(chrome, page, sides=1)
    curves = offline.path / "metrics/plots/training.csv"
    curves.write_text(curves.read_text(encoding="utf-8").replace("0.", "0.1", 1), encoding="utf-8")
    offline.dvc("plots", "diff", "HEAD")
    draws(chrome, page, sides=2)
    assert offline.run("git", "status", "--porcelain") == " M metrics/plots/training.csv\n"  # nothing else is seen


def test_the_page_that_dvc_makes_by_itself_asks_the_network(clone: Clone, chrome: webdriver.Chrome) -> None:
    clone.dvc("plots", "show")
    show(chrome, clone.path / "dvc_plots/index.html")
    assert [url for url in requests(chrome) if url.startswith("https://")]


def test_scripts_cannot_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(javascript_bundle=lambda vl_version: "a = '</script><b>'")
    monkeypatch.setitem(sys.modules, "vl_convert", package)
    page = offline_plots.template()
    assert page.count("</script>") == 1
    assert "<\\/script><b>" in page
    assert "{plot_divs}" in page
    assert "{scripts}" not in page


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError, match="needs the package vl-convert-python, .* `make plots` installs it"):
        offline_plots.template()


def test_the_package_has_the_version_that_is_asked_for(vega: ModuleType) -> None:
    assert offline_plots.VEGA_LITE in vega.get_vegalite_versions()
