"""The page of a run: Results, and what they were compared with, as one HTML document that loads nothing.

Pure: the same values give the same text. All of it goes through review.markup, which escapes.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from review import charts, comparison, comparison_text, results, significance
from review.comparison_text import MISSING
from review.markup import Child, Markup, join, prose, tag
from review.results import Confusion, Results
from stages.common import paths
from stages.evaluate import scores

MOST_PICTURES = 24  # of each kind
MOST_CLASSES = 40  # in a matrix; of more, the most frequent mistakes say more
MOST_PAIRS = 10  # kinds of mistake that are listed
MOST_EPOCHS = 400  # points of a curve
MOST_ROWS = 100  # of a table of numbers
MOST_NAME = 60  # letters of a name in a headline; more of it is in the tables

CSS = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WORDS = {significance.BETTER: ("better", "▲"), significance.WORSE: ("worse", "▼"), significance.NOISE: ("noise", "≈")}

Picture = Callable[[int], str | None]  # the data: URI of a test image; None: unavailable


@dataclass(frozen=True)
class Against:
    """The other side: its results, and the comparison (review.comparison), in which it is A."""

    other: Results
    document: dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Where the work tree stands in Git."""

    commit: str
    branch: str | None
    changed: list[str]  # files that differ from the commit
    lock_sha256: str | None


@dataclass(frozen=True)
class Section:
    """A part of the page. key: of its address in the page."""

    key: str
    title: str
    content: Markup


def page(run: Results, against: Against | None, picture: Picture, notes: Sequence[str], provenance: Provenance) -> str:
    """The whole document. notes: what the reader must know to trust it, a line each."""
    metrics = numbers(run)
    headline, name = heading(metrics), data_and_model(run)
    sections = [*(comparison_sections(run, against, picture) if against else []), *run_sections(run, against, picture)]
    sections.append(Section("provenance", "Provenance", origin(run, provenance)))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{name}: {headline}" if name else headline),
        tag("style", Markup(CSS.read_text(encoding="utf-8"))),
    )
    top = tag(
        "header",
        tag("p", name or "Run", class_="eyebrow"),
        tag("h1", headline),
        lead(metrics),
        banner(against) if against else "",
        warnings(notes),
        tag(
            "nav",
            tag("ul", *(tag("li", tag("a", section.title, href=f"#{section.key}")) for section in sections)),
            aria_label="Sections",
        ),
    )
    main = tag("main", *(tag("section", tag("h2", s.title), s.content, id=s.key) for s in sections))
    foot = tag(
        "footer",
        prose(
            f"Made by `python -m review.report`. Results: {comparison.RECORDED}. The same run gives the same bytes; "
            "the page loads and runs nothing."
        ),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', top, main, foot), lang='en')}\n"


# The top


def numbers(run: Results) -> dict[tuple[str, str], float]:
    """Every number among the metrics: (file, dotted name) -> value."""
    rows = comparison.metric_rows({}, run.revision.metrics)
    return {(row["file"], row["metric"]): row["b"] for row in rows if row["b"] is not None}


def heading(metrics: dict[tuple[str, str], float]) -> str:
    """The result in a line."""
    test = paths.TEST_METRICS.as_posix()
    accuracy, images = metrics.get((test, "accuracy")), metrics.get((test, "images"))
    if accuracy is None:
        return "Not measured on test images"
    return f"Test accuracy {percent(accuracy)}" + (f" ({images:,} images)" if images is not None else "")


def data_and_model(run: Results) -> str:
    """The names of the data set and of the network, if they are known."""
    values = run.revision.ran_with or run.revision.params or {}
    names = [values.get(key) for key in ("data.name", "model.name")]
    return " · ".join(short(str(name)) for name in names if isinstance(name, str))


def lead(metrics: dict[tuple[str, str], float]) -> Markup:
    """The other numbers that matter, each with what it is."""
    test, train = paths.TEST_METRICS.as_posix(), paths.TRAIN_METRICS.as_posix()

    def shown(file: str, name: str, form: str = ",") -> str | None:
        value = metrics.get((file, name))
        return None if value is None else percent(value) if form == "%" else f"{value:{form}}"

    low, high = shown(test, "accuracy_low", "%"), shown(test, "accuracy_high", "%")
    tiles = [
        ("95 % interval", f"{low[:-2]} to {high}" if low and high else None),
        ("wrong test images", shown(test, "errors")),
        ("test loss", shown(test, "loss", ".4f")),
        ("calibration error", shown(test, "calibration_error", ".4f")),
        ("validation accuracy", shown(train, "validation_accuracy", "%")),
        ("weights", shown(train, "parameters")),
    ]
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles if value is not None]
    return tag("dl", *pairs, class_="tiles") if pairs else Markup()


def banner(against: Against) -> Markup:
    """The verdict."""
    document = against.document
    verdict = document["verdict"]
    kind, sign = WORDS.get(verdict["word"], ("none", "?"))
    text = re.sub("^accuracy ", "Accuracy ", verdict["text"])  # another one may begin with a name, which stays
    line = tag("p", tag("span", sign, class_="sign", aria_hidden="true"), verdict_line(document), class_="verdict")
    parts = [tag("div", line, tag("p", prose(f"{text}.".replace(" -> ", " → "))))]
    if verdict["low"] is not None:
        points = [100 * verdict[key] for key in ("low", "difference", "high")]
        what = f"Difference of accuracy {points[1]:+.2f} points, interval {points[0]:+.2f} to {points[2]:+.2f}"
        decimals = 2 if max(map(abs, points)) < 1 else 1
        parts.append(
            charts.interval(points[0], points[1], points[2], kind, what, lambda value: f"{value:+.{decimals}f} points")
        )
    return tag("div", *parts, class_=f"banner {kind}", role="note", aria_label="Verdict")


def verdict_line(document: dict[str, Any]) -> Markup:
    """`work tree is better than main`, with the names set apart."""
    names = {side: tag("b", short(str(document[side]["name"]))) for side in ("a", "b")}
    word = document["verdict"]["word"]
    if word in (significance.BETTER, significance.WORSE):
        return join(names["b"], f" is {word} than ", names["a"])
    return join(names["b"], " against ", names["a"], f": {word}")


def warnings(notes: Sequence[str]) -> Markup:
    """What is missing or in doubt."""
    if not notes:
        return Markup()
    return tag("ul", *(tag("li", prose(note)) for note in notes), class_="notes", aria_label="Notes")


# Against another revision


def comparison_sections(run: Results, against: Against, picture: Picture) -> list[Section]:
    """What changed: parameters, metrics, and the images that tell them apart."""
    document = against.document
    a, b = (short(str(document[side]["name"])) for side in ("a", "b"))
    rows = [
        [
            tag("code", row["key"]),
            *(tag("code", comparison_text.value(row[side])) if side in row else MISSING for side in ("a", "b")),
            ", ".join(row["read_by"]) or "no stage",
        ]
        for row in document["parameters"]
    ]
    differ = table("Parameters", ["parameter", a, b, "read by"], rows, words=(1, 2, 3), title=True)
    parameters = differ if rows else tag("p", "No parameter differs.")
    both = tag("div", tag("div", parameters), tag("div", metrics_of_both(document, a, b)), class_="pair")
    sections = [Section("changes", f"What changed against {a}", both)]
    if document["images"] is None:
        return sections
    counts, old, new = document["images"], against.other.predictions.table, run.predictions.table
    intro = join(
        table(
            f"Test images classified correctly and wrongly by {a} and {b}",
            ["", f"{b} correct", f"{b} wrong"],
            [
                [f"{a} correct", f"{counts['both_right']:,}", tag("b", f"{counts['broken']:,} broken")],
                [f"{a} wrong", tag("b", f"{counts['fixed']:,} fixed"), f"{counts['both_wrong']:,}"],
            ],
        ),
        tag("p", f"{counts['changed']:,} of {counts['images']:,} predictions changed. Before: {a}; after: {b}."),
    )
    parts = [intro]
    if old is not None and new is not None:
        columns = (old["label"], old["prediction"], new["prediction"])
        masks = significance.paired(*(column.cat.codes.to_numpy().astype(np.int64) for column in columns))
        for kind, wrong, right in (("broken", new, a), ("fixed", old, b)):
            places = results.most_confident(wrong, np.flatnonzero(masks[kind]), MOST_PICTURES)
            which = f"{kind}: correct in {right} only, the most confident mistakes first"
            parts.append(tag("h3", kind.capitalize()))
            parts.append(tag("p", how_many(len(places), counts[kind], which)))
            parts.append(gallery(places, picture, functools.partial(both_predictions, old=old, new=new), new))
    sections.append(Section("images", "Images fixed and broken", join(*parts)))
    return sections


def metrics_of_both(document: dict[str, Any], a: str, b: str) -> Markup:
    """Both sides' numbers; those that are equal are folded away."""
    rows: dict[bool, list[list[Child]]] = {True: [], False: []}
    for row in document["metrics"]:
        rows[row["difference"] != 0].append(
            [
                f"{Path(row['file']).stem}: {row['metric']}",
                *(comparison_text.number(row[side]) for side in ("a", "b")),
                comparison_text.number(row["difference"], sign="+"),
            ]
        )
    heads = ["metric", a, b, "difference"]
    differ = table("Metrics", heads, rows[True], title=True) if rows[True] else tag("p", "No metric differs.")
    same = f"{len(rows[False])} that are the same on both sides"
    return join(differ, details(same, table("Metrics that are the same", heads, rows[False])) if rows[False] else "")


def both_predictions(at: int, old: pd.DataFrame, new: pd.DataFrame) -> Markup:
    """What each side predicted for an image."""
    lines = []
    for when, found in (("before", old), ("after", new)):
        row = found.iloc[at]
        kind = "wrong" if row["prediction"] != row["label"] else "right"
        text = f"{when} {short(str(row['prediction']), 24)}, {percent(row['probability'], 0)}"
        lines.append(tag("span", text, class_=kind))
    return join(*lines)


# The run


def run_sections(run: Results, against: Against | None, picture: Picture) -> list[Section]:
    """What is known of the run itself."""
    sections = []
    if run.curves is not None:
        sections.append(Section("training", "Training", training(run.curves, against)))
    if run.confusion is not None:
        sections.append(Section("confusion", "Confusion matrix", confusion(run.confusion)))
    if run.reliability is not None:
        sections.append(Section("reliability", "Reliability", reliability(run.reliability)))
    if run.confusion is not None:
        sections.append(Section("classes", "Precision and recall", by_class(run.confusion)))
    sections.append(Section("mistakes", "Worst mistakes", mistakes(run, picture)))
    if against is None:  # else they stand beside the other side's
        rows = [[f"{Path(file).stem}: {name}", comparison_text.number(n)] for (file, name), n in numbers(run).items()]
        sections.append(Section("metrics", "All metrics", table("All metrics", ["metric", "value"], rows)))
    sections.append(Section("parameters", "Parameters", parameters(run)))
    return sections


def training(curves: pd.DataFrame, against: Against | None) -> Markup:
    """Loss and accuracy by epoch, and the other side's on validation."""
    shown = thinned(curves)
    sides = [("", shown, {"train_loss": "two", "validation_loss": "one", "validation_accuracy": "one"})]
    if against is not None and against.other.curves is not None:
        name = f", {short(against.other.revision.name, 24)}"
        sides.append(
            (name, thinned(against.other.curves), {"validation_loss": "other", "validation_accuracy": "other"})
        )

    def series(column: str, name: str) -> list[charts.Series]:
        return [
            charts.Series(f"{name}{whose}", kinds[column], list(table["epoch"]), list(table[column]))
            for whose, table, kinds in sides
            if column in kinds and column in table
        ]

    drawn = []
    if losses := [*series("train_loss", "training"), *series("validation_loss", "validation")]:
        what = f"Loss by epoch; the last: {', '.join(f'{one.name} {one.y[-1]:.4f}' for one in losses)}"
        drawn.append(figure("Loss", charts.lines(losses, "epoch", what)))
    if accuracies := series("validation_accuracy", "validation"):
        what = f"Accuracy by epoch; the last: {', '.join(f'{one.name} {percent(one.y[-1])}' for one in accuracies)}"
        drawn.append(figure("Accuracy", charts.lines(accuracies, "epoch", what, percent=True)))
    rows = [[f"{row['epoch']:g}", *(f"{value:.6g}" for value in row.iloc[1:])] for _, row in shown.iterrows()]
    heads = [str(name).replace("_", " ") for name in shown.columns]
    numbers = details("The numbers", table("Training, epoch by epoch", heads, rows[:MOST_ROWS]))
    return join(tag("div", *drawn, class_="pair"), numbers)


def thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """As many epochs as a chart can show, the last of them among these."""
    step = -(-len(curves) // MOST_EPOCHS)
    return curves.iloc[(len(curves) - 1) % step :: step]


def confusion(found: Confusion) -> Markup:
    """The matrix as a table, and the most frequent mistakes."""
    matrix, names = found.matrix, [short(name, 24) for name in found.classes]
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    parts = []
    if len(names) <= MOST_CLASSES:
        kind = "upright" if max(map(len, names)) <= 3 else "slanted"
        top = tag(
            "tr",
            tag("td", class_="corner"),
            *(tag("th", tag("span", name), scope="col") for name in names),
        )
        body = [
            tag(
                "tr",
                tag("th", name, scope="row"),
                *(cell(int(count), row == column, wrong, matrix) for column, count in enumerate(matrix[row])),
            )
            for row, name in enumerate(names)
        ]
        caption = tag("caption", "Rows: true class. Columns: predicted class. Empty cells: no images.")
        parts.append(scroll("Confusion matrix", tag("table", caption, top, *body, class_=f"matrix {kind}")))
    order = np.argsort(-wrong.ravel(), kind="stable")[:MOST_PAIRS]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order if wrong.ravel()[place]]
    rows = [
        [names[true], names[taken], f"{wrong[true, taken]:,}", percent(wrong[true, taken] / matrix[true].sum())]
        for true, taken in pairs
    ]
    heads = ["true", "predicted", "images", "of the class"]
    frequent = table("The most frequent mistakes", heads, rows, words=(1,)) if rows else tag("p", "No mistakes.")
    parts.append(tag("div", tag("h3", "Most frequent"), frequent))
    return tag("div", *parts, class_="pair uneven")


def cell(count: int, right: bool, wrong: scores.Ints, matrix: scores.Ints) -> Markup:
    """A cell of the matrix: shades of one colour for correct predictions, of another for mistakes."""
    if not count:
        return tag("td")
    most = int(matrix.diagonal().max() if right else wrong.max())
    shade = max(1, round(5 * (count / most) ** (1.0 if right else 0.6)))
    return tag("td", f"{count}", class_=f"{'hit' if right else 'miss'}{shade}")


def reliability(found: pd.DataFrame) -> Markup:
    """The diagram, with words on how to read it, and its numbers."""
    error = scores.calibration_error(found) if found["images"].sum() else 0.0
    confident = "under" if float(((found["accuracy"] - found["confidence"]) * found["images"]).sum()) > 0 else "over"
    text = (
        f"Above the dashed line, accuracy is higher than the predicted probability. Over all images the network is "
        f"{confident}confident; probability and accuracy differ by {100 * error:.2f} points on average (expected "
        "calibration error). Bins with few images have wide intervals."
    )
    what = f"Reliability diagram of {len(found)} bins; calibration error {error:.4f}"
    rows = [
        [
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.images:,}",
            f"{row.confidence:.3f}",
            f"{row.accuracy:.3f}",
            f"{row.accuracy_low:.3f} to {row.accuracy_high:.3f}",
        ]
        for row in found.itertuples()
    ]
    heads = ["probability", "images", "mean probability", "accuracy", "95 % interval"]
    numbers = details("The numbers", table("Reliability, bin by bin", heads, rows[:MOST_ROWS]))
    chart = figure("Accuracy", charts.reliability(found, what))
    return tag("div", chart, tag("div", tag("p", text), numbers), class_="pair")


def by_class(found: Confusion) -> Markup:
    """Precision, recall and F1, the shares with their intervals."""
    matrix, rows = found.matrix, []
    numbers = scores.by_class(matrix)
    for at, name in enumerate(found.classes):
        right, images, predicted = int(matrix[at, at]), int(matrix[at].sum()), int(matrix[:, at].sum())
        rows.append(
            [
                short(name, 40),
                f"{images:,}",
                *with_interval(right, predicted),
                *with_interval(right, images),
                f"{numbers['f1'].iloc[at]:.4f}",
            ]
        )
    heads = ["class", "images", "precision", "95 % interval", "recall", "95 % interval", "F1"]
    text = (
        "Precision: share of the predictions of a class that are correct. Recall: share of its images that are found."
    )
    return join(tag("p", text), table("Precision, recall and F1 of each class", heads, rows))


def with_interval(right: int, images: int) -> tuple[str, str]:
    """A share and its interval (Wilson)."""
    if not images:
        return MISSING, MISSING
    low, high = scores.wilson(right, images)
    return percent(right / images), f"{100 * low:.1f} to {percent(high, 1)}"


def mistakes(run: Results, picture: Picture) -> Markup:
    """The wrong predictions of the highest probability."""
    found = run.predictions.table
    if found is None:
        return tag("p", prose(f"The predictions are unavailable: {run.predictions.why}."), class_="absent")
    wrong = np.flatnonzero(found["label"].to_numpy() != found["prediction"].to_numpy())
    if not len(wrong):
        return tag("p", "No mistakes.")
    places = results.most_confident(found, wrong, MOST_PICTURES)

    def caption(at: int) -> Markup:
        row = found.iloc[at]
        taken = tag("span", f"predicted {short(str(row['prediction']), 24)}", class_="wrong")
        return join(taken, tag("span", f"with probability {percent(row['probability'], 1)}"))

    return join(
        tag("p", how_many(len(places), len(wrong), "mistakes, the most confident first")),
        gallery(places, picture, caption, found),
    )


def parameters(run: Results) -> Markup:
    """What the stages read, one table per block, without the blocks of choices not taken."""
    asked, read = run.revision.params or {}, run.revision.ran_with
    values = {key: read[key] for key in [*asked, *read] if key in read}  # in the order of params.yaml
    text = "As the stages read them, without the blocks of choices not taken."
    if not values:
        values, text = asked, "As they stand: dvc.lock does not say what the stages read."
    if not values:
        return tag("p", "No parameters are known.", class_="absent")
    blocks: dict[str, list[list[Child]]] = {}
    for key, value in values.items():
        block, _, leaf = key.rpartition(".")
        blocks.setdefault(block, []).append([tag("code", leaf), tag("code", comparison_text.value(value))])
    tables = [table(block, ["key", "value"], rows, words=(1,), title=True, bare=True) for block, rows in blocks.items()]
    return join(tag("p", text), tag("div", *tables, class_="blocks"))


def origin(run: Results, provenance: Provenance) -> Markup:
    """Commit, dvc.lock, outputs, environment."""
    changed = provenance.changed
    shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
    facts: list[list[Child]] = [
        ["commit", tag("code", provenance.commit)],
        ["branch", provenance.branch or "none (a detached HEAD)"],
        ["changed since", shown or "nothing: the files in Git are those of the commit"],
        ["dvc.lock, SHA-256", tag("code", provenance.lock_sha256 or "not there")],
    ]
    parts = [table("Git and DVC", ["what", "value"], facts, words=(1,), title=True, bare=True)]
    if not run.environment:
        parts.append(tag("p", "The environment of this run is not recorded.", class_="absent"))
    else:
        found = {stage: _without_outputs(each) for stage, each in run.environment.items()}
        first = next(iter(found.values()))
        if all(each == first for each in found.values()):
            found = {" and ".join(found): first}
        rows = [
            [key.replace("_", " "), *(str(each.get(key, MISSING)) for each in found.values())]
            for key in dict.fromkeys(key for each in found.values() for key in each)
        ]
        words = tuple(range(1, len(found) + 1))
        parts.append(table("Environment", ["stage", *found], rows, words=words, title=True))
    outs = [
        [
            tag("code", path),
            tag("code", out.md5 or MISSING, class_="digest"),
            f"{out.size:,}" if out.size is not None else MISSING,
        ]
        for path, out in run.revision.outs.items()
    ]
    if outs:
        parts.append(table("Outputs, by dvc.lock", ["output", "MD5", "bytes"], outs, words=(1,), title=True))
    return join(*parts)


def _without_outputs(environment: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in environment.items() if key != "outputs"}  # a table of their own has them


# The pieces


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[Child]],
    words: Sequence[int] = (),
    title: bool = False,
    bare: bool = False,
) -> Markup:
    """A table in a box that scrolls if it must.

    words: the columns that are set to the left, as the first is. title: show the caption, else it is only heard.
    bare: do not show the heads of the columns.
    """

    def side(at: int) -> str | None:
        return None if at == 0 or at in words else "num"

    head = tag("tr", *(tag("th", name, scope="col", class_=side(at)) for at, name in enumerate(heads)))
    body = [
        tag(
            "tr",
            *(tag("td", content, class_=side(at)) if at else tag("th", content, scope="row") for at, content in row),
        )
        for row in map(enumerate, rows)
    ]
    caption_tag = tag("caption", caption, class_=None if title else "unseen")
    return scroll(
        caption, tag("table", caption_tag, tag("thead", head, class_="unseen" if bare else None), tag("tbody", *body))
    )


def scroll(name: str, content: Markup) -> Markup:
    """A box that scrolls sideways by itself, with the keyboard too, so that the page need not."""
    return tag("div", content, class_="scroll", tabindex="0", role="region", aria_label=name)


def details(summary: str, content: Markup) -> Markup:
    """Folded away until asked for."""
    return tag("details", tag("summary", summary), content)


def figure(caption: str, content: Markup) -> Markup:
    """A chart under its name."""
    return tag("figure", tag("figcaption", caption), content)


def gallery(
    places: Sequence[int], picture: Picture, describe: Callable[[int], Markup], found: pd.DataFrame | None
) -> Markup:
    """Test images, each with its label and its predictions."""
    if found is None or not places:
        return Markup()
    items = []
    for at in places:
        label = short(str(found["label"].iloc[at]), 24)
        source = picture(at)
        image = tag("img", src=source, alt=f"Test image {at}, labelled {label}") if source is not None else ""
        caption = tag(
            "figcaption",
            tag("span", "label ", tag("b", label)),
            describe(at),
            tag("span", f"image {at:,}", class_="small"),
        )
        items.append(tag("li", tag("figure", image, caption)))
    return tag("ul", *items, class_="gallery")


def how_many(shown: int, every: int, what: str) -> str:
    """`24 of 679 broken, …`, or `all 17 …`."""
    return f"{shown} of {every:,} {what}." if shown < every else f"All {every:,} {what}." if every else f"None {what}."


def percent(share: float, decimals: int = 2) -> str:
    """A share as people read it."""
    return f"{100 * share:.{decimals}f} %"


def short(name: str, most: int = MOST_NAME) -> str:
    """A name that fits."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
