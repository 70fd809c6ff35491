"""The server: the page in a real headless Chromium, requests of programs, limits and abuse."""

import asyncio
import base64
import csv
import io
import json
import math
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from selenium import webdriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from torch import nn

from stages.common import paths
from stages.common.errors import UserError
from stages.dataset import data_card, idx, packed, pictures
from stages.network import models
from tests.browser import CONTRAST, browser, console, requests, show
from tests.clones import Clone
from tests.imports import ROOT
from tests.programs import need
from use import app, limits, schemas, serve
from use import mistakes as search
from use.batching import PART
from use.classifier import Classifier
from use.prepare import Pixels

SHARED = "a token of 16 or more characters"
SIZES = [(width, scheme) for width in (390, 1400) for scheme in ("light", "dark")]


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def classifier(pipeline: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    """The pipeline's model, with numerics that a process may set more than once. Runs in the pipeline's folder."""
    folder = tmp_path_factory.mktemp("serve")
    text = (ROOT / paths.PARAMS).read_text(encoding="utf-8").replace("numerics: portable", "numerics: fast")
    (folder / paths.PARAMS).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = Classifier(str(pipeline.path / paths.MODEL))
        patch.chdir(pipeline.path)
        yield found


@pytest.fixture(scope="module")
def images(pipeline: Clone) -> Pixels:
    return idx.decode((pipeline.path / paths.TEST_IMAGES).read_bytes())


@contextmanager
def serving(classifier: Classifier, token: str | None = None, local: bool = True) -> Iterator[str]:
    """Run the server in a thread; yields its URL."""
    listener = serve.listening("127.0.0.1", 0)
    server = uvicorn.Server(limits.configuration(app.application(classifier, token, local)))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=600)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(classifier: Classifier) -> Iterator[str]:
    with serving(classifier) as found:
        yield found


@pytest.fixture
def digit(images: Pixels) -> bytes:
    return png(images[0])


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=600)


def head(url: str, length: int, *more: str) -> bytes:
    """The headers of a POST /predict."""
    host = url.removeprefix("http://")
    lines = ["POST /predict HTTP/1.1", f"Host: {host}", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


def everything(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


# --- the page


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with browser(need("chromium", "chromium"), need("chromium-driver", "chromedriver")) as found:
        yield found


def status(chrome: webdriver.Chrome, text: str) -> str:
    """The status on the page, once it starts with `text`."""
    WebDriverWait(chrome, 600, 0.05).until(lambda page: page.find_element("id", "status").text.startswith(text))
    return chrome.find_element("id", "status").text


def opened(chrome: webdriver.Chrome, url: str, width: int = 1400, scheme: str = "light") -> None:
    show(chrome, url, width, scheme)
    WebDriverWait(chrome, 600, 0.05).until(lambda page: "classes" in page.find_element("id", "about").text)


def mistakes(chrome: webdriver.Chrome, text: str = "The network misreads") -> list[WebElement]:
    """The training images on the page, once the note above them starts with `text`."""
    WebDriverWait(chrome, 600, 0.05).until(lambda page: page.find_element("id", "mistakes-note").text.startswith(text))
    return chrome.find_elements("css selector", "#mistakes-list li")


def place(chrome: webdriver.Chrome, name: str) -> tuple[float, float, float]:
    """Left, top and width of an element, in pixels of the window."""
    script = "const r = document.getElementById(arguments[0]).getBoundingClientRect(); return [r.left, r.top, r.width]"
    left, top, width = chrome.execute_script(script, name)
    return left, top, width


def draw(chrome: webdriver.Chrome, points: list[tuple[float, float]], finger: bool = False) -> None:
    """Draw a stroke. points: in units of the canvas, 0 to 1."""
    left, top, width = place(chrome, "canvas")
    whole = [{"x": left + width * x, "y": top + width * y} for x, y in points]
    if finger:
        for kind, touches in [
            ("touchStart", whole[:1]),
            *(("touchMove", [point]) for point in whole),
            ("touchEnd", []),
        ]:
            chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        return
    mouse = {"button": "left", "buttons": 1, "clickCount": 1}
    for event, at in [("mousePressed", whole[0]), *(("mouseMoved", at) for at in whole), ("mouseReleased", whole[-1])]:
        chrome.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": event, **at, **mouse})


def digit_one() -> list[tuple[float, float]]:
    """An upright line in a corner, which the page has to centre."""
    return [(0.2, 0.1 + step / 20) for step in range(9)]


def digit_zero() -> list[tuple[float, float]]:
    angles = [step * math.pi / 12 for step in range(25)]
    return [(0.5 + 0.2 * math.cos(angle), 0.5 + 0.3 * math.sin(angle)) for angle in angles]


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_a_digit_is_drawn_and_recognized(chrome: webdriver.Chrome, url: str, width: int, scheme: str) -> None:
    opened(chrome, url, width, scheme)
    draw(chrome, digit_one())
    assert status(chrome, "Predicted") == "Predicted: 1"
    chrome.find_element("id", "clear").click()
    status(chrome, "Nothing")
    draw(chrome, digit_zero(), finger=width == 390)
    assert status(chrome, "Predicted") == "Predicted: 0"
    rows = chrome.find_element("id", "classes").text.splitlines()
    assert rows[0] == "0"
    assert re.fullmatch(r"\d+\.\d\d %", rows[1])
    assert len(rows) == 10  # five classes
    assert chrome.find_element("id", "seen").text == "As the network sees it"
    size = "const p = document.getElementById('picture'); return [p.naturalWidth, p.naturalHeight]"
    assert chrome.execute_script(size) == [28, 28]
    similar = [item.text.splitlines() for item in mistakes(chrome)]
    assert len(similar) == 6
    for label, prediction, similarity in similar:
        assert re.fullmatch(r"true: \d", label)
        assert re.fullmatch(r"predicted: \d", prediction)
        assert label[-1] != prediction[-1]
        assert re.fullmatch(r"similarity: 0\.\d\d", similarity)
    sizes = "return [...document.querySelectorAll('#mistakes-list img')].map(p => p.naturalWidth)"
    assert chrome.execute_script(sizes) == [28] * 6
    found = chrome.execute_script(CONTRAST)
    assert found["bad"] == []
    assert found["seen"] > 20
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    assert console(chrome) == []
    asked = requests(chrome)
    assert f"{url}/predict?top=5&seen=true&invert=no" in asked
    assert f"{url}/mistakes?count=6&invert=no" in asked
    assert [other for other in asked if not other.startswith(url)] == []


def test_a_drawing_is_centred_and_scaled_like_mnist(chrome: webdriver.Chrome, url: str) -> None:
    opened(chrome, url)
    draw(chrome, digit_one())
    status(chrome, "Predicted")
    ink = """
    const picture = document.getElementById('picture'), canvas = document.createElement('canvas');
    canvas.width = canvas.height = 28;
    const pen = canvas.getContext('2d');
    pen.drawImage(picture, 0, 0);
    return [...pen.getImageData(0, 0, 28, 28).data].filter((_, index) => index % 4 === 0);
    """
    seen = np.array(chrome.execute_script(ink)).reshape(28, 28)
    rows = np.nonzero(seen > 128)[0]
    assert rows.max() - rows.min() + 1 in (19, 20, 21)
    assert (seen * np.arange(28)).sum() / seen.sum() == pytest.approx(13.5, abs=0.6)
    assert (seen.T * np.arange(28)).sum() / seen.sum() == pytest.approx(13.5, abs=0.6)
    chrome.find_element("id", "centre").click()
    WebDriverWait(chrome, 600, 0.05).until(
        lambda page: np.nonzero(np.array(page.execute_script(ink)).reshape(28, 28))[1].max() < 12
    )


def test_files_are_dropped_chosen_and_pasted(
    chrome: webdriver.Chrome, url: str, images: Pixels, tmp_path: Path
) -> None:
    paper = tmp_path / "paper.png"
    paper.write_bytes(png(255 - images[0]))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    opened(chrome, url)
    left, top, _ = place(chrome, "drop")
    data = {"items": [], "files": [str(paper)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        chrome.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": left + 20, "y": top + 20, "data": data})
    status(chrome, "Predicted")
    assert chrome.find_element("id", "seen").text == "As the network sees it, light and dark swapped"
    chrome.find_element("id", "file").send_keys(str(broken))
    assert "not a picture" in status(chrome, "This picture cannot be read")
    chrome.find_element("id", "file").send_keys(str(paper))
    status(chrome, "Predicted")
    chrome.find_element("id", "clear").click()
    paste = """
    const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0)), data = new DataTransfer();
    data.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));
    dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));
    """
    chrome.execute_script(paste, base64.b64encode(png(images[0])).decode())
    status(chrome, "Predicted")
    assert console(chrome) == []


def test_the_page_takes_the_token_from_its_address(chrome: webdriver.Chrome, classifier: Classifier) -> None:
    with serving(classifier, SHARED, local=False) as url:
        show(chrome, url)
        assert "needs a token" in status(chrome, "This server")
        show(chrome, "about:blank")
        opened(chrome, f"{url}/#token={SHARED.replace(' ', '+')}")
        draw(chrome, digit_one())
        assert status(chrome, "Predicted") == "Predicted: 1"
        assert console(chrome) == []


def test_clear_cancels_the_running_requests(
    chrome: webdriver.Chrome, classifier: Classifier, tmp_path: Path, digit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, classify = threading.Event(), Classifier.classify

    def slow_classify(*arguments: Any, **options: Any) -> Any:
        goes_on.wait(timeout=600)
        return classify(*arguments, **options)

    monkeypatch.setattr(Classifier, "classify", slow_classify)
    picture = tmp_path / "digit.png"
    picture.write_bytes(digit)
    keep_signals = """
    window.signals = [];
    const send = window.fetch;
    window.fetch = (path, options) => { signals.push(options.signal); return send(path, options); };
    """
    with serving(classifier) as url:
        opened(chrome, url)
        chrome.execute_script(keep_signals)
        try:
            for _ in range(2):  # a browser does not report the same file again, unless the page has reset its input
                chrome.find_element("id", "file").send_keys(str(picture))
                WebDriverWait(chrome, 60, 0.05).until(
                    lambda page: page.execute_script("return signals.filter(signal => !signal.aborted).length") == 1
                )
                chrome.find_element("id", "clear").click()
                assert status(chrome, "Nothing") == "Nothing yet."
        finally:
            goes_on.set()
        assert chrome.execute_script("return signals.map(signal => signal.aborted)") == [True, True]


# --- training mistakes


def expected_mistakes(classifier: Classifier, pixels: Pixels) -> tuple[Any, Any]:
    """The positions of the misclassified training images, and their similarities to a picture (C, H, W)."""
    card = data_card.read(paths.DATA_CARD)
    split = packed.open_split(paths.TRAIN, card.shape, len(card.classes))
    network = classifier.network
    (last,) = [layer for layer in network.modules() if isinstance(layer, nn.Linear) and layer.out_features == 10]
    inputs: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda layer, given: inputs.append(given[0]))
    with torch.inference_mode():
        labels = network(torch.from_numpy(split[:])).argmax(1).numpy()
        network(torch.from_numpy(np.stack([pixels])))
    handle.remove()
    wrong = np.flatnonzero(labels != split.labels)
    return wrong, nn.functional.cosine_similarity(inputs[0][wrong], inputs[1]).numpy()


def test_the_most_similar_training_mistakes_are_found(
    classifier: Classifier, images: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SEARCH_SECONDS", math.inf)
    monkeypatch.setattr(search, "MAX_MISTAKES", math.inf)
    wrong, similarities = expected_mistakes(classifier, images[:1])
    with serving(classifier) as url:
        while True:
            answer = httpx.post(f"{url}/mistakes?count=8", content=png(images[0]), timeout=600)
            found = schemas.TrainingMistakes.model_validate(answer.json(), strict=True)
            if not found.searching:
                break
        unreadable = httpx.post(f"{url}/mistakes", content=b"no picture", timeout=600)
        refused = httpx.post(f"{url}/mistakes?count=33", content=b"", timeout=600)
    assert (found.unavailable, found.model) == (None, classifier.sha256)
    assert found.training_images == found.searched == 57_000
    assert found.misclassified == len(wrong) > 100
    assert [each.similarity for each in found.mistakes] == pytest.approx(sorted(similarities)[:-9:-1], abs=2e-4)
    train = idx.decode(paths.TRAIN_IMAGES.read_bytes())
    labels = idx.decode(paths.TRAIN_LABELS.read_bytes())
    for each in found.mistakes:
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(each.image.partition(",")[2]))))
        (position,) = np.flatnonzero((train == pixels).all(axis=(1, 2)))
        assert each.label == str(labels[position])
        (prediction,) = classifier.classify(pixels[None, None])
        assert each.prediction == str(prediction.argmax()) != each.label
        assert each.probability == pytest.approx(np.exp(prediction.max()), abs=2e-6)
    assert (unreadable.status_code, "not a picture" in unreadable.json()["error"]) == (422, True)
    assert (refused.status_code, "count" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize(("name", "value"), [("SEARCH_SECONDS", 0), ("MAX_MISTAKES", 1)])
def test_a_search_that_reaches_a_limit_says_how_far_it_came(
    chrome: webdriver.Chrome, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(search, "SEARCH_SECONDS", math.inf)
    monkeypatch.setattr(search, name, value)
    with serving(classifier) as url:
        opened(chrome, url)
        draw(chrome, digit_one())
        assert mistakes(chrome)
        text = chrome.find_element("id", "mistakes-note").text
    expected = (
        r"The network misreads \d+ of 16 training pictures; not all 57,000 were searched. The most similar to yours:"
    )
    assert re.fullmatch(expected, text)


def test_the_page_shows_the_mistakes_found_so_far(
    chrome: webdriver.Chrome, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, run_search = threading.Event(), search.Mistakes.search

    def paused(mistakes: search.Mistakes, stop: threading.Event) -> None:
        run_search(mistakes, stop)
        goes_on.wait(timeout=600)

    monkeypatch.setattr(app, "SEARCH_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(search, "MAX_MISTAKES", 1)
    monkeypatch.setattr(search.Mistakes, "search", paused)
    with serving(classifier) as url:
        opened(chrome, url)
        draw(chrome, digit_one())
        WebDriverWait(chrome, 600, 0.05).until(
            lambda page: mistakes(page, "The search of the 57,000 training pictures")
        )
        assert status(chrome, "Predicted") == "Predicted: 1"
        goes_on.set()
        assert mistakes(chrome)  # the page asks again until the search has ended


def test_a_server_that_stops_ends_the_search(classifier: Classifier) -> None:
    stop, mistakes = threading.Event(), search.Mistakes(classifier)
    stop.set()
    mistakes.search(stop)
    assert mistakes.searched == PART


def test_the_page_says_why_there_are_no_training_mistakes(
    chrome: webdriver.Chrome, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = json.loads(paths.DATA_CARD.read_bytes())
    with serving(classifier) as url:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            opened(chrome, url)
            draw(chrome, digit_one())
            assert mistakes(chrome, "Not available: data/processed/data.json: no such file") == []
            paths.PROCESSED.mkdir(parents=True)
            paths.DATA_CARD.write_text(json.dumps({**card, "mean": [0.5]}))
            draw(chrome, digit_one())
            mistakes(chrome, "Not available: data/processed is not the data that this model was trained on")
            assert status(chrome, "Predicted") == "Predicted: 1"
        draw(chrome, digit_one())
        assert mistakes(chrome)  # the data is there, so it searches again
        assert console(chrome) == []


def test_a_last_layer_that_is_a_convolution_has_pooled_features(images: Pixels) -> None:
    some = images[:5, None].copy()  # torch wants arrays that can be written
    head = nn.Sequential(nn.Conv2d(6, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU())
    network = nn.Sequential(models.Normalize([0.1], [0.3]), nn.Sequential(body, head))
    before = list(network.state_dict())
    found = search.Features(network, torch.device("cpu"))(some, part_size=2)
    with torch.inference_mode():
        expected = body(network[0](torch.from_numpy(some))).mean(dim=(2, 3)).numpy()
    assert found == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True), abs=1e-5)
    assert list(network.state_dict()) == before


# --- programs


def test_the_test_set_gives_the_probabilities_that_evaluate_wrote(url: str, pipeline: Clone, images: Pixels) -> None:
    expected = list(csv.DictReader((pipeline.path / paths.PREDICTIONS).read_text(encoding="utf-8").splitlines()))[:100]
    for start in (0, 50):
        files = [("picture", (f"{index}.png", png(images[index]))) for index in range(start, start + 50)]
        answer = httpx.post(f"{url}/predict?top=10", files=files, timeout=600)
        assert answer.status_code == 200
        for prediction, wanted in zip(answer.json()["predictions"], expected[start : start + 50], strict=True):
            assert prediction["file"] == f"{wanted['index']}.png"
            assert prediction["classes"][0]["name"] == wanted["prediction"]
            for each in prediction["classes"]:
                assert each["probability"] == pytest.approx(float(wanted[f"p_{each['name']}"]), abs=2e-6)


def test_an_answer_does_not_depend_on_concurrent_requests(url: str, images: Pixels) -> None:
    def ask(index: int) -> list[dict[str, Any]]:
        answer = httpx.post(f"{url}/predict?top=10", content=png(images[index]), timeout=600)
        assert answer.status_code == 200
        classes: list[dict[str, Any]] = answer.json()["predictions"][0]["classes"]
        return classes

    with ThreadPoolExecutor(16) as pool:
        crowd = list(pool.map(ask, range(48)))
    assert [ask(index) for index in (0, 20, 47)] == [crowd[index] for index in (0, 20, 47)]


def count(url: str, name: str, **labels: str) -> float:
    """The sum of a metric over its samples with these labels."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def test_metrics_health_and_openapi(url: str, digit: bytes) -> None:
    before = count(url, "pictures_total", outcome="predicted"), count(url, "answers_total", status="422")
    assert httpx.post(f"{url}/predict", content=digit).status_code == 200
    assert httpx.post(f"{url}/predict", content=b"no picture").status_code == 422
    assert (count(url, "pictures_total", outcome="predicted"), count(url, "answers_total", status="422")) == (
        before[0] + 1,
        before[1] + 1,
    )
    assert count(url, "answer_seconds_count") > 0
    assert httpx.get(f"{url}/health").json()["status"] == "ok"

    described = httpx.get(f"{url}/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/mistakes", "/model", "/health", "/metrics"}
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described)))
    assert references <= set(described["components"]["schemas"])
    answer = httpx.post(f"{url}/predict?seen=true", content=digit).json()
    assert schemas.Predictions.model_validate(answer, strict=True).predictions[0].seen
    assert schemas.Model.model_validate(httpx.get(f"{url}/model").json()).classes == [
        str(number) for number in range(10)
    ]


def bomb() -> bytes:
    """A PNG whose header announces 3.6 billion pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def post(url: str, **arguments: Any) -> httpx.Response:
    return httpx.post(f"{url}/predict", timeout=600, **arguments)


# In UTF-7, this name is half of a character, which JSON cannot contain.
FORM = b'--B\r\nContent-Disposition: form-data; name="a"; filename="+2AA-"\r\n\r\nx\r\n--B--\r\n'

REFUSALS: dict[str, tuple[Callable[[str], httpx.Response], int, str]] = {
    "bomb": (lambda url: post(url, content=bomb()), 422, "pixels; at most"),
    "nothing": (lambda url: post(url, content=b""), 422, "empty file"),
    "no-files": (lambda url: post(url, files={"a": (None, "text")}), 400, "Too many fields"),
    "form-without-boundary": (lambda url: post(url, headers={"Content-Type": "multipart/form-data"}), 400, "boundary"),
    "many": (lambda url: post(url, files=[("a", ("a", b"x"))] * 65), 400, "Too many files"),
    "charset": (
        lambda url: post(url, headers={"Content-Type": "multipart/form-data; boundary=B; charset=utf-7"}, content=FORM),
        400,
        "the charset of a form must be utf-8",
    ),
    "malformed-form": (
        lambda url: post(url, headers={"Content-Type": "multipart/form-data; boundary=B"}, content=b"no boundary"),
        400,
        "Invalid multipart data",
    ),
    "unknown-key": (lambda url: post(url, params={"tpo": "3"}), 400, "tpo: Extra inputs"),
    "query": (lambda url: post(url, params={"top": "0"}), 400, "top"),
    "host": (lambda url: post(url, headers={"Host": "evil.example"}), 421, "127.0.0.1"),
    "elsewhere": (lambda url: post(url, headers={"Sec-Fetch-Site": "cross-site"}), 403, "other sites"),
    "method": (lambda url: httpx.get(f"{url}/predict"), 405, "Method Not Allowed"),
    "path": (lambda url: httpx.get(f"{url}/../params.yaml"), 404, "Not Found"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_requests_get_a_reason_in_one_line(url: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    ask, expected, reason = REFUSALS[name]
    answer = ask(url)
    assert answer.status_code == expected
    assert reason in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert httpx.get(f"{url}/health").status_code == 200
    assert caplog.text == ""


@pytest.mark.parametrize("length", [2 * 10**9, 10**19])
def test_a_body_is_not_read_if_its_announced_length_is_too_large(url: str, length: int) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(head(url, length))
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"more than 32,000,000 bytes" in answer


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
        ("127.0.0.1.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_loopback_host_names_are_allowed(url: str, host: str, expected: int) -> None:
    assert httpx.get(f"{url}/model", headers={"Host": host}).status_code == expected


def test_another_site_may_link_to_the_page(url: str) -> None:
    assert httpx.get(url, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
    assert httpx.get(f"{url}/model", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_one_bad_picture_of_several_is_one_error(url: str, digit: bytes) -> None:
    found = post(url, files=[("a", ("a", digit)), ("b", ("b", bomb())), ("c", ("c", digit))]).json()["predictions"]
    assert [prediction["error"] is None for prediction in found] == [True, False, True]


def test_an_endless_body_is_cut_off(url: str) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(head(url, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 10 * limits.MAX_BODY:
                connection.sendall(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
                sent += 0x100000
        except ConnectionError:
            pass
        assert sent < 5 * limits.MAX_BODY
    assert httpx.get(f"{url}/health").status_code == 200


# --- clients that take their time, and crowds


def test_slow_clients_are_disconnected(classifier: Classifier, digit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(limits, "REQUEST_SECONDS", 1)
    with serving(classifier) as url, ThreadPoolExecutor(4) as pool:

        def silent() -> bytes:
            with closing(connect(url)) as connection:
                return everything(connection)

        def half_a_head() -> bytes:
            with closing(connect(url)) as connection:
                connection.sendall(head(url, 10)[:30])
                return everything(connection)

        def half_a_body() -> bytes:
            with closing(connect(url)) as connection:
                connection.sendall(head(url, 10) + b"12345")
                return everything(connection)

        def half_a_second_head() -> bytes:
            with closing(connect(url)) as connection:
                connection.sendall(head(url, len(digit)) + digit + head(url, 10)[:30])
                return everything(connection)

        first, second, third, fourth = [
            pool.submit(work) for work in (silent, half_a_head, half_a_body, half_a_second_head)
        ]
        assert (first.result(), second.result()) == (b"", b"")
        assert third.result().startswith(b"HTTP/1.1 408 ")
        assert fourth.result().startswith(b"HTTP/1.1 200 ")
        assert fourth.result().count(b"HTTP/1.1") == 1
        assert count(url, "answers_total") == count(url, "answers_total", status="408") + 1 == 2
        assert post(url, content=digit).status_code == 200


def test_a_client_that_does_not_read_is_disconnected(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listening = serve.listening

    def with_small_buffers(address: str, port: int) -> socket.socket:
        listener = listening(address, port)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            listener.setsockopt(socket.SOL_SOCKET, buffer, 4096)
        return listener

    monkeypatch.setattr(serve, "listening", with_small_buffers)
    monkeypatch.setattr(limits, "REQUEST_SECONDS", 1)
    with serving(classifier) as url, closing(connect(url)) as connection:
        many = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000_000
        with pytest.raises(ConnectionError):
            connection.sendall(many)  # until the buffers are full
        assert httpx.get(f"{url}/health").status_code == 200
    assert caplog.text == ""


def test_a_large_file_does_not_delay_other_requests(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on, facts = threading.Event(), threading.Event(), pictures.facts

    def slow_facts(content: bytes) -> pictures.Facts:
        begun.set()
        goes_on.wait(timeout=600)
        return facts(content)

    monkeypatch.setattr(pictures, "facts", slow_facts)
    with serving(classifier) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, url, content=b"no picture" * 10_000)
        try:
            assert begun.wait(timeout=600)
            assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        finally:
            goes_on.set()
        assert answer.result().status_code == 422


def test_the_memory_of_all_requests_together_is_bounded(
    classifier: Classifier, digit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD", 100_000)
    with serving(classifier) as url, closing(connect(url)) as connection:
        connection.sendall(head(url, 200_000) + b"x" * 99_000)
        while True:  # until it has read so much
            answer = post(url, content=b"x" * 60_000)
            if answer.status_code == 503:
                break
            assert answer.status_code == 422
        assert answer.headers["retry-after"] == "1"
        assert post(url, content=digit).status_code == 200  # small ones have room
        connection.close()
        while post(url, content=b"x" * 60_000).status_code != 422:  # once it has noticed
            pass


def test_an_error_in_the_network_is_an_answer_and_the_next_request_works(
    classifier: Classifier, digit: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(classifier) as url:
        with monkeypatch.context() as patch:
            patch.setattr(Classifier, "classify", lambda *arguments: 1 / 0)
            answer = post(url, content=digit)
            assert (answer.status_code, answer.json()) == (500, {"error": "a bug in the server"})
            assert answer.headers["cache-control"] == "no-store"
        while "ZeroDivisionError" not in caplog.text:  # which comes after the answer
            time.sleep(0.05)
        assert count(url, "answers_total", status="500") == 1
        assert post(url, content=digit).status_code == 200


def test_clients_that_disconnect_do_no_harm(url: str, digit: bytes, caplog: pytest.LogCaptureFixture) -> None:
    contents = (head(url, 100)[:50], head(url, 100), head(url, len(digit)) + digit)
    for content in (*contents, *(content.replace(b"/predict", b"/mistakes") for content in contents)):
        for _ in range(20):
            with closing(connect(url)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                connection.sendall(content)
    assert post(url, content=digit).status_code == 200
    assert httpx.post(f"{url}/mistakes", content=digit, timeout=600).status_code == 200
    assert caplog.text == ""


# --- the program


@pytest.mark.parametrize("port", ["65536", "-1", "0000000099999", "http"])
def test_a_port_is_a_number_below_65536(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.parser().parse_args([f"--port={port}"])
    assert "allowed: 0 to 65535" in capsys.readouterr().err


def test_other_addresses_need_a_token() -> None:
    assert serve.checked_address("127.0.0.1", None) == "127.0.0.1"
    assert serve.checked_address("localhost", None) in ("127.0.0.1", "::1")
    assert serve.checked_address("::", SHARED) == "::"
    for host in ("::", "192.0.2.1"):
        with pytest.raises(UserError, match="other machines can reach this address, so set SERVE_TOKEN"):
            serve.checked_address(host, None)
    with pytest.raises(UserError, match="SERVE_TOKEN: allowed: 16 or more printable ASCII characters"):
        serve.checked_address("127.0.0.1", "short")
    with pytest.raises(UserError, match="not an address of this machine"):
        serve.checked_address("no.such.host.invalid", None)
    with (
        serve.listening("127.0.0.1", 0) as other,
        pytest.raises(UserError, match="cannot listen .*give another --port"),
    ):
        serve.listening("127.0.0.1", other.getsockname()[1])


def test_requests_need_the_token(classifier: Classifier, digit: bytes) -> None:
    with serving(classifier, SHARED, local=False) as url:
        for path in app.OPEN_PATHS:
            assert httpx.get(url + path).status_code == 200
        for path in ("/metrics", "/model", "/nosuch"):
            assert httpx.get(url + path).status_code == 401
        assert post(url, content=digit).status_code == 401
        assert post(url, content=digit, headers={"Authorization": f"Bearer {SHARED}x"}).status_code == 401
        allowed = {"Authorization": f"Bearer {SHARED}", "Host": "any.example"}
        assert post(url, content=digit, headers=allowed).status_code == 200


@contextmanager
def program(pipeline: Clone) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `python -m use.serve`; yields the process and its URL."""
    command = [sys.executable, "-m", "use.serve", "--port=0"]
    with subprocess.Popen(
        command, cwd=pipeline.path, env=pipeline.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, line.split()[2]
        finally:
            process.kill()


def test_on_sigterm_the_current_request_is_answered_first(pipeline: Clone, digit: bytes) -> None:
    with program(pipeline) as (process, url):
        assert post(url, content=digit).status_code == 200
        with closing(connect(url)) as connection:
            connection.sendall(head(url, len(digit), "Expect: 100-continue"))
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # the request has begun
            process.send_signal(signal.SIGTERM)
            while True:
                try:
                    connect(url).close()
                    time.sleep(0.05)
                except ConnectionRefusedError:
                    break
            connection.sendall(digit)
            assert everything(connection).startswith(b"HTTP/1.1 200 ")
        _, said = process.communicate(timeout=600)
        assert process.returncode == 128 + signal.SIGTERM
        assert said.splitlines()[-1].startswith("interrupted: the current requests were answered")


def test_a_request_that_outlasts_the_server_gets_an_answer(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "GRACE_SECONDS", 1)
    metrics = app.Metrics()
    monkeypatch.setattr(app, "Metrics", lambda: metrics)
    with serving(classifier) as url:
        connection = connect(url)
        connection.sendall(head(url, 10, "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # the request has begun, and never ends
    with closing(connection):
        assert everything(connection).startswith(b"HTTP/1.1 503 ")
    assert metrics.registry.get_sample_value("answers_total", {"status": "503"}) == 1
    assert "Traceback" not in caplog.text


@pytest.mark.soak
def test_a_thousand_at_once_and_two_gigabytes_are_answered_or_refused(pipeline: Clone, digit: bytes) -> None:
    with program(pipeline) as (process, url):
        resident = Path(f"/proc/{process.pid}/status")

        def megabytes() -> int:
            return int(re.findall(r"VmHWM:\s+(\d+) kB", resident.read_text())[0]) // 1000

        assert post(url, content=digit).status_code == 200
        before = megabytes()
        host, _, port = url.removeprefix("http://").partition(":")

        async def one_client(content: bytes) -> int:
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(head(url, len(content)) + content)
                await writer.drain()
                return int((await reader.readline()).split()[1])
            except (ConnectionError, IndexError):
                return 0
            finally:
                writer.close()

        async def crowd(content: bytes, count: int) -> list[int]:
            return list(await asyncio.gather(*(one_client(content) for _ in range(count))))

        found = asyncio.run(crowd(digit, 1000))
        assert set(found) <= {200, 503}  # how many are answered in time depends on the machine
        assert post(url, content=digit).status_code == 200
        slow = [connect(url) for _ in range(300)]  # which say nothing, while others are served
        assert asyncio.run(crowd(digit, 100)).count(200) == 100
        large = png(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8))  # 9 MB
        assert set(asyncio.run(crowd(large, 100))) <= {0, 200, 503}
        assert asyncio.run(crowd(b"x" * 2_000_000_000, 1)) in ([0], [413])
        for connection in slow:
            connection.close()
        assert post(url, content=digit).status_code == 200
        assert megabytes() < before + 1000
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 100
