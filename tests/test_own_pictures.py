"""The section of `make report` on own pictures: what the audit found, with thumbnails, whatever files are called."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from integrity.revisions import Revision
from review import own_pictures, report_page
from stages.common import paths
from tests.test_audit import audited, scene
from tests.test_folder import fill
from tests.test_pictures import saved
from tests.test_report import EVIL, chrome, harmless, looks_right, run

__all__ = ["chrome"]  # the fixture

NAME = EVIL.replace("/", "&")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with pictures that have most of what an audit finds, and metrics/data.json."""
    root = tmp_path_factory.mktemp("own")
    contents = {f"train/{label}/{seed}.png": saved(scene(seed)) for seed, label in enumerate("aabb")}
    contents |= {f"test/{label}/{seed}.png": saved(scene(10 + seed)) for seed, label in enumerate("ab")}
    contents |= {f"test/a/{NAME}.png": saved(scene(1)), f"train/b/{NAME} two.png": saved(scene(30))}
    contents |= {f"train/a/{'long ' * 30}.png": saved(scene(30)), f"train/a/{NAME} three.png": b"<html>"}
    fill(root / "data/mine", contents)
    with pytest.MonkeyPatch.context() as patch:
        found = audited(root / "data/mine", patch)
    classes = [{"class": EVIL, "train": 2, "validation": 0, "test": 1}]
    return root, {"images": {"train": 4, "test": 3}, "classes": classes, "audit": found}


def revision(document: dict[str, Any], images: str = "data/mine") -> Revision:
    metrics = {paths.DATA_METRICS.as_posix(): document}
    return dataclasses.replace(run(["a", "b"]).revision, metrics=metrics, ran_with={"data.images": images})


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_what_was_found_is_shown(
    width: int, scheme: str, project: tuple[Path, dict[str, Any]], tmp_path: Path, chrome: webdriver.Chrome
) -> None:
    root, document = project
    own, notes = own_pictures.section(revision(document), root)
    assert notes == []
    page = report_page.page(run(["a", "b"]), None, lambda index: None, [], [], own)
    reader = harmless(page)
    for text in (
        "Layout: train, test folders with a folder per class.",
        "left out: cannot be used",
        "not a picture but an HTML page",
        "The same file under several classes (1)",
        "The same file in two parts (1)",
        "Near copies in two parts (1)",
        f"test/a/{NAME}.png",
    ):
        assert text in reader.text, text
    thumbnails = sum(name == "img" for name, _ in reader.tags) - 2  # those that evaluate drew
    assert thumbnails == 2 + 2 + 2
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    looks_right(chrome, path, width, scheme, images=thumbnails + 2)


def test_without_the_pictures_their_names_are_there(project: tuple[Path, dict[str, Any]]) -> None:
    root, document = project
    own, notes = own_pictures.section(revision(document, "data/elsewhere"), root)
    assert notes == ["the pictures are unavailable: no folder data/elsewhere here"]
    page = report_page.page(run(["a", "b"]), None, lambda index: None, notes, [], own)
    assert page.count("<img") == 2
    assert "The same file in two parts (1)" in page


def test_a_published_set_has_no_such_section() -> None:
    assert own_pictures.section(revision({"images": {"train": 3}}), Path()) == (None, [])


def test_names_in_the_file_lead_nowhere_else(project: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, document = project
    wicked = copy.deepcopy(document)
    (root / "secret.png").write_bytes(saved(scene(0)))
    wicked["audit"]["constant"] = ["../../secret.png", str(root / "secret.png"), "train/a/missing.png", "train"]
    own, _ = own_pictures.section(revision(wicked), root)
    assert own
    (constant,) = (gallery for gallery in own["galleries"] if gallery["title"].startswith("A single colour"))
    assert [group[0]["source"] for group in constant["groups"]] == [None] * 4


@pytest.mark.parametrize("value", [None, 3, [], {}, {"files": "x"}, {"conflicts": [[1]]}])
def test_an_audit_that_is_nonsense_is_a_note(value: Any, project: tuple[Path, dict[str, Any]]) -> None:
    root, document = project
    audit = {**document["audit"], **value} if isinstance(value, dict) and value else value
    own, notes = own_pictures.section(revision({"audit": audit}), root)
    assert own is None
    assert len(notes) == 1
    assert "is not valid; `dvc repro` writes it again" in notes[0]


def test_other_nonsense_in_the_file_is_left_out(project: tuple[Path, dict[str, Any]]) -> None:
    root, document = project
    for images, classes in (("x", "y"), ({"train": "many", "test": 3}, [{"class": 3}, 4])):
        own, _ = own_pictures.section(revision({**document, "images": images, "classes": classes}), root)
        assert own
        assert "many" not in str(own["numbers"])
