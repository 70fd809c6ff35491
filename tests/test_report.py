"""`python -m review.report`: the page in a real headless Chromium, what it says, and what it does not let in."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from selenium import webdriver

from integrity import revisions
from integrity.revisions import Revision
from review import comparison, pictures, report, report_page, results
from review.report_page import Against
from review.results import Confusion, PredictionsLookup, Results
from stages.common import paths, record
from stages.common.errors import UserError
from stages.evaluate import figures, scores
from tests.browser import CONTRAST, browser, console, requests, show
from tests.clones import Clone
from tests.programs import need

EVIL = "<script>alert(1)</script>"  # Git takes it for the name of a branch
NAMES = [EVIL, '"><img src=x onerror=alert(2)>', "'; --", "&amp;", "</style><b>", "\u202egnp.exe"]
SIZES = [(width, scheme) for width in (390, 1400) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with browser(need("chromium", "chromium"), need("chromium-driver", "chromedriver")) as found:
        yield found


@pytest.fixture(scope="module")
def compared(pipeline: Clone) -> Iterator[Clone]:
    """The clone with a branch of a wicked name that is worse; its pages: report.html, and against.html."""
    pipeline.run("git", "checkout", "-qb", EVIL)
    pipeline.set("optimizers.adam.lr", "0.00001")
    assert pipeline.repro() == ["train", "evaluate"]
    pipeline.commit("worse")
    pipeline.run("git", "checkout", "-qf", "main")
    pipeline.dvc("checkout", "--force")
    make(pipeline)
    make(pipeline, "--against", EVIL, "--out", "against.html")
    yield pipeline
    for name in ("report.html", "against.html"):
        (pipeline.path / name).unlink()
    pipeline.run("git", "branch", "-qD", EVIL)


def make(clone: Clone, *arguments: str, check: bool = True) -> str:
    return clone.run(sys.executable, "-m", "review.report", *arguments, check=check)


class Reader(HTMLParser):
    """The tags of a page, their attributes, and its text outside <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside != "style" else ""


def harmless(page: str) -> Reader:
    """The page, read; it has nothing that runs or loads anything."""
    reader = Reader(page)
    assert not {name for name, _ in reader.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    for name, attributes in reader.tags:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        for key in ("src", "href"):
            value = attributes.get(key) or ""
            assert value.startswith(("data:", "#")) or key not in attributes, (name, attributes)
    assert [attributes["content"] for _, attributes in reader.tags if "http-equiv" in attributes] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]
    assert "url(" not in page
    assert "@import" not in page
    return reader


def looks_right(chrome: webdriver.Chrome, page: Path, width: int, scheme: str, images: int) -> None:
    """Nothing is asked for, nothing complained of, all is there, fits and can be read."""
    show(chrome, page, width, scheme)
    assert requests(chrome) == [page.resolve().as_uri()]
    assert console(chrome) == []
    widths = chrome.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == images
    assert all(each > 0 for each in widths)
    assert chrome.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    found = chrome.execute_script(CONTRAST)
    assert found["bad"] == []
    assert found["seen"] > 200
    inner, scrolled = chrome.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert inner == width
    assert scrolled <= width


# In the browser, of a run on real MNIST


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_page_of_a_run(width: int, scheme: str, compared: Clone, chrome: webdriver.Chrome) -> None:
    looks_right(chrome, compared.path / "report.html", width, scheme, images=len(results.PICTURES))
    assert (compared.path / "report.html").stat().st_size < 2_000_000


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_page_against_a_branch(width: int, scheme: str, compared: Clone, chrome: webdriver.Chrome) -> None:
    page = compared.path / "against.html"
    shown = harmless(page.read_text(encoding="utf-8")).tags
    looks_right(chrome, page, width, scheme, images=sum(name == "img" for name, _ in shown))
    assert page.stat().st_size < 2_000_000
    verdict = chrome.execute_script("return document.querySelector('.verdict').innerText")
    assert verdict == f"▲work tree is better than {EVIL}"


def test_the_test_of_the_browser_can_fail(tmp_path: Path, chrome: webdriver.Chrome) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<p style='color: #999; width: 500px'>grey</p><img src='https://no.example/x.png'><script>throw 1</script>",
        encoding="utf-8",
    )
    show(chrome, page, 390)
    assert "https://no.example/x.png" in requests(chrome)
    assert any(line.endswith("Uncaught") for line in console(chrome))
    assert chrome.execute_script(CONTRAST)["bad"] == ["2.85 rgb(153, 153, 153) grey"]
    assert chrome.execute_script("return document.documentElement.scrollWidth") > 390


def outputs(clone: Clone) -> dict[str, dict[str, Any]]:
    """The outputs in dvc.lock, by path."""
    lock = yaml.safe_load((clone.path / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out for stage in lock["stages"].values() for out in stage["outs"]}


def test_it_says_what_the_files_say(compared: Clone) -> None:
    page = harmless((compared.path / "report.html").read_text(encoding="utf-8"))
    measured, trained = compared.metrics("evaluate"), compared.metrics("train")
    assert f"Test accuracy {100 * measured['accuracy']:.2f} % (10,000 images)" in page.text
    assert f"{100 * measured['accuracy_low']:.2f} to {100 * measured['accuracy_high']:.2f} %" in page.text
    assert f"{trained['parameters']:,}" in page.text
    assert "models.mlp" in page.text  # the chosen network, and no other
    assert "models.cnn" not in page.text
    assert compared.run("git", "rev-parse", "HEAD").strip() in page.text
    lock = (compared.path / "dvc.lock").read_bytes()
    assert hashlib.sha256(lock).hexdigest() in page.text
    environment = json.loads((compared.path / "metrics/environment/train.json").read_text(encoding="utf-8"))
    assert (environment["processor"] in page.text) == record.describes(
        environment, {path: out["md5"] for path, out in outputs(compared).items()}
    )
    table = pd.read_csv(compared.path / "data/predictions.csv", dtype={"label": str, "prediction": str})
    first = (
        table[table["label"] != table["prediction"]].sort_values("probability", ascending=False, kind="stable").iloc[0]
    )
    row = (
        f'<th scope="row" class="text">{first["index"]:,}</th><td class="text">{first["label"]}</td>'
        f'<td class="text">{first["prediction"]}</td><td class="num">{100 * first["probability"]:.1f} %</td>'
    )
    assert row in (compared.path / "report.html").read_text(encoding="utf-8")
    shown = [attributes["src"] or "" for name, attributes in page.tags if name == "img"]
    drawn = [(compared.path / path).read_bytes() for path in results.PICTURES]
    assert [base64.b64decode(uri.removeprefix("data:image/png;base64,")) for uri in shown] == drawn


def test_it_says_what_changed(compared: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    page = harmless((compared.path / "against.html").read_text(encoding="utf-8"))
    monkeypatch.chdir(compared.path)
    told = comparison.read(EVIL, None, 0.05)
    assert told["verdict"]["word"] == "better"
    text = told["verdict"]["text"].replace(" -> ", " → ")
    assert f"{text[:1].upper()}{text[1:]}." in page.text
    assert f"{told['images']['fixed']:,} fixed" in page.text
    assert f"{told['images']['broken']:,} broken" in page.text
    assert "optimizers.adam.lr" in page.text
    assert "1e-05" in page.text


def test_the_same_bytes_twice_and_none_of_the_folder(compared: Clone, tmp_path: Path) -> None:
    before = (compared.path / "against.html").read_bytes()
    out = tmp_path / "again.html"
    told = make(compared, "--against", EVIL, "--out", str(out))
    assert out.read_bytes() == before
    assert str(compared.path) not in before.decode()
    assert re.search(
        rf"^{re.escape(str(out))}: Test accuracy \d\d\.\d\d % \(10,000 images\), \d+ kB$", told, re.MULTILINE
    )
    assert f"work tree against {EVIL}: better" in told


def test_git_does_not_see_it(compared: Clone) -> None:
    (compared.path / "against.html").rename(compared.path.parent / "against.html")
    status = compared.run("git", "status", "--porcelain")
    (compared.path.parent / "against.html").rename(compared.path / "against.html")
    assert status == ""


# What is not there


def test_what_is_missing_is_said(compared: Clone, tmp_path: Path) -> None:
    moved = [compared.path / name for name in ("data", ".dvc/cache", "metrics/plots/training.csv")]
    remote = compared.path.parent / "dvc-remote"
    for path in [*moved, remote]:
        path.rename(tmp_path / path.name)
    (compared.path / "metrics/plots/confusion.csv").write_text("label,prediction,images\na,a,1\n", encoding="utf-8")
    try:
        make(compared, "--against", EVIL, "--out", "less.html")
    finally:
        for path in [*moved, remote]:
            shutil.rmtree(path, ignore_errors=True)
            (tmp_path / path.name).rename(path)
        compared.run("git", "checkout", "-q", "metrics")
    text = harmless((compared.path / "less.html").read_text(encoding="utf-8")).text
    (compared.path / "less.html").unlink()
    for line in (
        "work tree: no metrics/plots/training.csv there",
        "work tree: metrics/plots/confusion.csv: not one row per pair of classes; dvc repro writes it again",
        "work tree: no predictions, so no comparison image by image: data/predictions.csv is not in the cache; remote",
        "no test images: no predictions: data/predictions.csv is not in the cache; remote 'beside': its folder",
        "Fisher's exact test",
    ):
        assert line in text
    assert "Precision and recall" not in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--against", "nobody"], "unknown revision 'nobody'; allowed: a commit, branch, tag or experiment"),
        (["--against", ""], "the revision is empty; allowed: a commit, branch, tag or experiment"),
        (["--out", "params.yaml"], "--out is 'params.yaml'; allowed: a name that ends in .html"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], line: str, compared: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compared.path)
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    with pytest.raises(UserError) as error:
        report.main()
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none_is_one_line(compared: Clone) -> None:
    line = "error: --out params.yaml/x.html: Not a directory: params.yaml; give a file in an existing folder\n"
    assert make(compared, "--out", "params.yaml/x.html", check=False) == line


def test_no_run_yet(tmp_path: Path, compared: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(compared.path)
    monkeypatch.setattr(sys, "argv", ["report"])
    moved = compared.path / "metrics"
    moved.rename(tmp_path / "metrics")
    try:
        with pytest.raises(UserError) as error:
            report.main()
    finally:
        (tmp_path / "metrics").rename(moved)
    line = "work tree: no metrics/*.json; run `dvc repro` there, and commit what it writes"
    assert str(error.value) == line


# Names that would be markup, any number of classes: pages of runs that are made here


PICTURE = figures.worst(np.zeros((3, 1, 28, 28), dtype=np.uint8), ["a"] * 3, "b")


def run(classes: list[str], name: str = "work tree", images: int = 300, seed: int = 0) -> Results:
    """A run whose names, parameters and metrics are what somebody wicked may write."""
    random = np.random.default_rng(seed)
    labels = np.random.default_rng(9).integers(0, len(classes), images)
    taken = np.where(random.uniform(size=images) < 0.7, labels, random.integers(0, len(classes), images))
    p = random.uniform(1 / len(classes), 1, images)
    kind = pd.CategoricalDtype(classes)
    table = pd.DataFrame({"label": np.array(classes)[labels], "prediction": np.array(classes)[taken], "probability": p})
    evil = {f"a.{EVIL}": EVIL, "data.name": EVIL, "model.name": "x" * 300, "train.lr": 1e-5}
    side = Revision(
        name=name,
        commit=None,
        params={**evil, "seed": seed},
        read_by={EVIL: [EVIL]},
        metrics={
            paths.TEST_METRICS.as_posix(): {
                **{"accuracy": 0.7, "errors": 90, "images": images, EVIL: 1.0, "loss": "x"},
                "without_temperature": {"calibration_error": 0.1234},
            }
        },
        outs={},
        ran_with=evil,
        notes=[f"{name}: {EVIL} `{EVIL}` `"],
    )
    return Results(
        revision=side,
        predictions=PredictionsLookup(table.astype({"label": kind, "prediction": kind}), "", []),
        curves=pd.DataFrame({"epoch": [1.0], "train_loss": [0.5], EVIL: [1.0]}),
        confusion=Confusion(classes, scores.confusion(labels, taken, len(classes))),
        reliability=scores.reliability(p, labels == taken, 15),
        environment={EVIL: {EVIL: [EVIL]}},
        pictures=dict.fromkeys(results.PICTURES, PICTURE),
        missing=[EVIL],
    )


def page_of(one: Results, other: Results | None = None, channels: int = 1, side: int = 9) -> str:
    images = np.random.default_rng(1).integers(0, 256, (300, channels, side, side), dtype=np.uint8)
    against = None
    if other is not None:
        found = (other.predictions, one.predictions)
        document = comparison.compare(other.revision, one.revision, found, 0.05, None)
        against = Against(other, document)
    notes = [*one.revision.notes, *one.missing]
    where = [("commit", "0" * 40), ("branch", EVIL), (EVIL, "missing")]
    return report_page.page(one, against, lambda index: pictures.data_uri(images[index]), notes, where)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_wicked_names_are_only_text(width: int, scheme: str, tmp_path: Path, chrome: webdriver.Chrome) -> None:
    page = page_of(run(NAMES), run(NAMES, name=EVIL, seed=1), channels=3)
    reader = harmless(page)
    assert reader.text.count(EVIL) > 20
    assert "\u202e" not in page
    assert "?gnp.exe" in reader.text
    path = tmp_path / "wicked.html"
    path.write_text(page, encoding="utf-8")
    looks_right(chrome, path, width, scheme, images=sum(name == "img" for name, _ in reader.tags))
    assert chrome.title.startswith(EVIL)


@pytest.mark.parametrize("classes", [2, 300])
def test_any_number_of_classes(classes: int, tmp_path: Path, chrome: webdriver.Chrome) -> None:
    page = page_of(run([f"class {number}" for number in range(classes)]), side=200, channels=3)
    assert len(page.encode()) < 2_000_000
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    looks_right(chrome, path, 390, "light", images=2)


def test_other_classes_on_the_other_side_have_no_verdict() -> None:
    text = harmless(page_of(run(["a", "b"]), run(["a", "b", "c"], name="other"))).text
    assert "work tree against other: not comparable" in text
    assert "other has 3 classes, work tree has 2" in text
    assert "fixed" not in text


def test_calibration_is_told_with_and_without_the_temperature() -> None:
    assert "12.34 without the temperature that was fitted on validation" in page_of(run(["a", "b"]))


def test_a_run_without_mistakes() -> None:
    one = run(["a", "b"])
    table = one.predictions.table
    assert table is not None
    right = table.assign(prediction=table["label"])
    codes = right["label"].cat.codes.to_numpy().astype(np.int64)
    matrix = scores.confusion(codes, codes, 2)
    perfect = dataclasses.replace(
        one, predictions=PredictionsLookup(right, "", []), confusion=Confusion(["a", "b"], matrix)
    )
    assert harmless(page_of(perfect)).text.count("No mistakes.") == 2
    assert "no difference" in harmless(page_of(perfect, dataclasses.replace(perfect))).text


def test_nothing_but_metrics() -> None:
    bare = Results(run(["a", "b"]).revision, PredictionsLookup(None, "not in the cache", []), None, None, None, {})
    bare = dataclasses.replace(bare, revision=dataclasses.replace(bare.revision, ran_with={}, params=None, metrics={}))
    text = harmless(page_of(bare)).text
    assert "Not measured on test images" in text
    assert "The predictions are unavailable: not in the cache." in text
    assert "No parameters are known." in text
    assert "The picture metrics/plots/worst.png is unavailable." in text
    assert "The environment of this run is not recorded." in text


@pytest.mark.parametrize(
    ("recorded", "described"),
    [
        ({}, False),
        ({"outputs": {}}, False),
        ({"outputs": "a"}, False),
        ({"outputs": {"a": "1"}}, True),
        ({"outputs": {"a": "1", "b": "2"}}, True),
        ({"outputs": {"a": "1", "b": "3"}}, False),  # b is that of another run
        ({"outputs": {"a": "1", "c": "1"}}, False),  # no such output
    ],
    ids=["none", "no-outputs", "no-mapping", "one", "all", "another-run", "unknown"],
)
def test_an_environment_is_that_of_its_outputs_alone(recorded: dict[str, Any], described: bool) -> None:
    assert record.describes(recorded, {"a": "1", "b": "2"}) is described


def test_the_environment_on_the_page_is_that_of_the_run(
    compared: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compared.path / "metrics/environment/evaluate.json"
    monkeypatch.chdir(compared.path)
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path / "page.html")])
    for md5, shown in ((outputs(compared)["data/predictions.csv"]["md5"], True), ("0" * 32, False)):
        recorded = {"device": "abacus", "outputs": {"data/predictions.csv": md5}}
        path.write_text(json.dumps(recorded), encoding="utf-8")
        report.main()
        text = harmless((tmp_path / "page.html").read_text(encoding="utf-8")).text
        assert ("abacus" in text) == shown
        assert ("the recorded environment of evaluate belongs to another run" in text) != shown
    compared.run("git", "checkout", "-q", "metrics")


def test_a_matrix_that_contradicts_the_predictions_is_named(
    compared: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compared.path / "metrics/plots/confusion.csv"
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([first, f"{rest[0]}1", *rest[1:]]) + "\n", encoding="utf-8")
    monkeypatch.chdir(compared.path)
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path / "page.html")])
    report.main()
    compared.run("git", "checkout", "-q", "metrics")
    text = harmless((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "work tree: metrics/plots/confusion.csv contradicts the predictions; dvc repro there" in text
    assert "does not match dvc.lock: metrics/plots/confusion.csv; edited by hand, or damaged" in text


@pytest.mark.parametrize("path", results.PICTURES, ids=["overview", "worst"])
def test_a_picture_that_dvc_lock_does_not_name_is_left_out(
    path: str, compared: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (compared.path / path).write_bytes(PICTURE)
    monkeypatch.chdir(compared.path)
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path / "page.html")])
    report.main()
    compared.run("git", "checkout", "-q", "metrics")
    page = harmless((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert f"work tree: {path}: left out, because it is not the file that dvc.lock names" in page.text
    assert f"The picture {path} is unavailable." in page.text
    assert sum(name == "img" for name, _ in page.tags) == 1


# The pieces


def test_text_is_escaped_and_what_cannot_be_printed_is_replaced() -> None:
    assert report_page.prose("run `<b>` now") == "run <code>&lt;b&gt;</code> now"
    assert report_page.prose("a ` b") == "a &#39; b"
    assert report_page.prose("a\x00\x1b\u202e\nb") == "a???\nb"
    template = report_page.environment().from_string('<p title="{{ text }}">{{ text }}{{ text | prose }}</p>')
    assert template.render(text='"<\u202e') == '<p title="&#34;&lt;?">&#34;&lt;?&#34;&lt;?</p>'
    with pytest.raises(jinja2.UndefinedError, match="'text' is undefined"):
        template.render(other="")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 1, 1), (3, 64, 64), (3, 65, 200), (2, 300, 100)])
def test_pictures_are_small_and_upright(shape: tuple[int, int, int]) -> None:
    image = np.zeros(shape, dtype=np.uint8)
    image[:, : shape[1] // 2] = 255  # white above, black below
    uri = pictures.data_uri(image)
    assert uri == pictures.data_uri(image)
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert b"matplotlib" not in content
    read = Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB")
    assert max(read.size) <= pictures.LARGEST
    assert read.width / read.height == pytest.approx(shape[2] / shape[1], rel=0.2)
    if shape[1] > 1:
        assert read.getpixel((0, 0)) == (255, 255, 255)
        assert read.getpixel((0, read.height - 1)) == (0, 0, 0)


CURVES = "epoch,lr,train_loss\n1,0.1,0.5\n2,0.1,0.4\n"
MATRIX = "label,prediction,images\na,a,5\na,b,0\nb,a,1\nb,b,4\n"
BINS = "low,high,images,confidence,accuracy,accuracy_low,accuracy_high\n0.5,1,3,0.9,1,0.4,1\n"


def test_files_of_a_run_are_read() -> None:
    assert results.curves(CURVES.encode(), "x")["train_loss"].tolist() == [0.5, 0.4]
    found = results.confusion(MATRIX.replace("a,", "None,").replace(",a", ",None").encode(), "x")
    assert found is not None
    assert found.classes == ["None", "b"]
    assert found.matrix.tolist() == [[5, 0], [1, 4]]
    bins = results.reliability(BINS.encode(), "x")
    assert bins is not None
    assert bins["images"].tolist() == [3]


def test_tables_without_rows_are_of_regression() -> None:
    assert results.confusion(MATRIX.splitlines()[0].encode(), "x") is None
    assert results.reliability(BINS.splitlines()[0].encode(), "x") is None


@pytest.mark.parametrize(
    ("parse", "content", "line"),
    [
        (results.curves, "", "x: not a CSV file: "),
        (results.curves, "epoch\n", "x: no table of epochs"),
        (results.curves, CURVES.replace("epoch", "step"), "x: no table of epochs"),
        (results.curves, CURVES.replace("0.4", "nan"), "x: 'nan' is not a finite number below 1e15"),
        (results.curves, CURVES.replace("0.4", "1e300"), "x: '1e300' is not a finite number below 1e15"),
        (results.curves, CURVES.replace("0.4", "low"), "x: could not convert string to float: 'low'"),
        (results.curves, CURVES.replace("0.4", "0.4,1"), "x: not a CSV file: "),
        (results.confusion, MATRIX.replace("label", "true"), "x: no table of label, prediction and images"),
        (results.confusion, MATRIX.replace("b,b,4\n", ""), "x: not one row per pair of classes"),
        (results.confusion, MATRIX.replace("b,a", "b,b"), "x: not one row per pair of classes"),
        (results.confusion, MATRIX.replace(",4", ",-4"), "x: images are counts"),
        (results.reliability, BINS.replace("high,", "top,", 1), "x: its columns are not low, high, images"),
        (results.reliability, BINS.replace("0.9", "9"), "x: shares are from 0 to 1"),
        (results.reliability, "\udcff" + BINS, "x: not a CSV file: "),
    ],
)
def test_files_of_a_run_that_are_none(parse: Any, content: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        parse(content.encode("utf-8", "surrogateescape"), "x")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_images_of_another_test_set_are_not_shown(compared: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(compared.path)
    with revisions.repository() as repo:
        found = results.read(repo, None)
        assert report.test_images(repo, found)[1] == ""
        table = found.predictions.table
        assert table is not None
        other = table.assign(label=table["label"].iloc[::-1].to_numpy())
        moved = dataclasses.replace(found, predictions=PredictionsLookup(other, "", []))
        assert report.test_images(repo, moved) == (
            None,
            "the labels of data/processed/test and data/predictions.csv differ",
        )
