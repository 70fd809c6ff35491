"""search.yaml: what `make search` tries, and for how long. Checked against params.yaml before anything runs."""

import copy
import datetime
import json
import re
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, model_validator

from integrity import rules
from review.sweep import HIGHER_IS_BETTER, SEED
from stages.common import inputs, params, paths
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.text import nearest, shown

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

FILE = Path("search.yaml")
PIPELINE = Path("dvc.yaml")
METRICS_OF_TASK = {
    "classification": ("validation_accuracy", "validation_balanced_accuracy", "validation_loss"),
    "regression": ("validation_r2", "validation_loss"),
}
SELECT_BY = "train.select_by"
MEASURED_FOR = {"validation_balanced_accuracy": "balanced_accuracy"}  # the train.select_by that a metric needs
CHOSEN_BY = {"augmentations": "train.augmentation"}  # sections that DVC reads completely, and train in part
DIGITS = 4  # significant digits of a drawn number, so that a person can read it and type it
GRID = 1e-6  # steps by which rounding may move a value off the grid of its range
BLOCK = re.compile(r"(\w+)\.\$\{([\w.]+)\}")  # of dvc.yaml: `optimizers.${train.optimizer}`


class Options(Section):
    """Section `search`."""

    metric: Literal["validation_accuracy", "validation_balanced_accuracy", "validation_loss", "validation_r2"]
    trials: int = Field(ge=1, le=100_000)
    minutes: float = Field(ge=0, le=1_000_000)
    jobs: int = Field(ge=1, le=64)
    sampler: Literal["tpe", "random"]
    seed: int = Field(ge=0, lt=2**31)
    pruner: Literal["median", "none"]
    startup_trials: int = Field(ge=0, le=100_000)
    warmup_epochs: int = Field(ge=0, le=100_000)
    final_seeds: int = Field(ge=0, le=100)

    @model_validator(mode="after")
    def _several_seeds(self) -> Self:
        if self.final_seeds == 1:
            raise ValueError("final_seeds is 1, which shows no variation; allowed: 0, or 2 to 100")
        return self


class Dimension(Section):
    """One key of section `space`: a range, or choices."""

    low: int | float | None = Field(None, description="a number")
    high: int | float | None = Field(None, description="a number")
    log: bool = False
    step: int | float | None = Field(None, description="a number above 0")
    choices: list[Any] | None = Field(None, description="a list of two values or more")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("either `choices`, or a range of `low` and `high`")
            if len({json.dumps(value, default=str) for value in self.choices}) < max(2, len(self.choices)):
                raise ValueError("`choices` has fewer than two values, or one of them twice")
            if dates := [value for value in self.choices if isinstance(value, datetime.date)]:
                raise ValueError(f"{dates[0]} is a date; allowed: numbers, texts, true, false, and lists of them")
        elif self.low is None or self.high is None:
            raise ValueError("a range needs `low` and `high`; or list `choices`")
        elif self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; allowed: a low below high")
        elif self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log: true` needs a low above 0, and no step")
        elif self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step is {self.step}; allowed: above 0, and no more than high - low")
        return self


class Plan(NamedTuple):
    """The content of search.yaml. space: key of params.yaml -> its distribution. recipe: all of params.yaml, by key."""

    options: Options
    space: dict[str, Distribution]
    recipe: dict[str, Any]
    definition: dict[str, Any]  # section `space` as written

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is."""
        return HIGHER_IS_BETTER[self.options.metric]


def read(values: dict[str, Any] | None = None) -> Plan:
    """Read search.yaml and params.yaml. Raises UserError with a line for each mistake.

    values: the content of params.yaml; None: that of the work tree.
    """
    values = params.load(paths.PARAMS) if values is None else values
    if mistakes := rules.check(values):
        raise UserError("\n".join(mistakes))
    if not FILE.is_file():
        raise UserError(f"{FILE}: no such file; it says what to try: docs/search.md has an example")
    content = params.load(FILE)
    known = ["search", "space"]
    if unknown := [key for key in content if key not in known]:
        name = unknown[0]
        raise UserError(
            f"{FILE}: {shown(name)}: unknown section{nearest(str(name), known)}; allowed: {', '.join(known)}"
        )
    options = params.section(content, "search", Options, FILE)
    definition = content.get("space")
    if not isinstance(definition, dict) or not definition:
        raise UserError(f"{FILE}: space has no parameter; add one, such as optimizers.adam.lr: {{low: …, high: …}}")
    if not values["preprocess"]["validation_fraction"]:
        raise UserError(f"{paths.PARAMS}: preprocess.validation_fraction is 0: a search needs validation images")
    task = values["data"]["task"]
    if options.metric not in METRICS_OF_TASK[task]:
        allowed = " | ".join(METRICS_OF_TASK[task])
        raise UserError(f"{FILE}: search.metric is {options.metric}, and data.task is {task}; allowed: {allowed}")
    recipe = params.flatten(values, paths.PARAMS.as_posix())
    blocks = read_by_train()
    space, lines = {}, []
    for key in definition:
        try:
            space[key] = dimension(str(key), definition, recipe, blocks)
        except UserError as error:
            lines.append(str(error))
    lines = lines or unread(definition, recipe, blocks) or refused(space, values) or unmeasured(space, recipe, options)
    if lines:
        raise UserError("\n".join(lines))
    return Plan(options, space, recipe, definition)


def read_by_train() -> dict[str, str]:
    """The sections of params.yaml that train reads, from dvc.yaml: name -> the key that chooses its block, or ""."""
    blocks: dict[str, str] = {}
    for entry in inputs.stages(PIPELINE)["train"]["params"]:
        match = BLOCK.fullmatch(str(entry))
        blocks[match[1] if match else str(entry).partition(".")[0]] = match[2] if match else ""
    return {**blocks, **{name: chooser for name, chooser in CHOSEN_BY.items() if name in blocks}}


def dimension(key: str, definition: dict[str, Any], recipe: dict[str, Any], blocks: dict[str, str]) -> Distribution:
    """The distribution of a key. Raises UserError."""
    where = f"{FILE}: space.{shown(key)}"
    known = [name for name in recipe if name.partition(".")[0] in blocks and name != SEED]
    if key == SEED:
        raise UserError(f"{where}: a seed is chance, not a setting; final_seeds compares several")
    if key not in known:
        reason = "train does not read it" if key in recipe else f"unknown key of {paths.PARAMS}"
        raise UserError(f"{where}: {reason}{nearest(key, known)}; allowed: keys of {', '.join(blocks)}")
    drawn = params.checked(definition[key], f"space.{key}", Dimension, FILE)
    if drawn.choices is not None:
        return CategoricalDistribution([json.dumps(value) for value in drawn.choices])
    current = recipe[key]
    if isinstance(current, bool) or not isinstance(current, int | float):
        raise UserError(f"{where}: {key} is {current!r}, which has no range; list `choices`")
    low, high = drawn.low or 0, drawn.high or 0  # the schema excludes None
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a step may end below `high`
        if all(isinstance(number, int) for number in (current, low, high, drawn.step or 1)):
            return IntDistribution(int(low), int(high), log=drawn.log, step=int(drawn.step or 1))
        return FloatDistribution(low, high, log=drawn.log, step=drawn.step)


def unread(definition: dict[str, Any], recipe: dict[str, Any], blocks: dict[str, str]) -> list[str]:
    """One line per key of a block that no trial uses, such as optimizers.sgd with another train.optimizer."""
    lines = []
    for key in definition:
        section, name = key.split(".")[:2]
        if not (chooser := blocks[section]):
            continue
        chosen = definition[chooser]["choices"] if chooser in definition else [recipe[chooser]]
        if not any(name in choice if isinstance(choice, list) else name == choice for choice in chosen):
            value = " | ".join(map(str, chosen))
            lines.append(
                f"{FILE}: space.{key}: no trial reads it, because {chooser} is {value}; remove it, or change {chooser}"
            )
    return lines


def refused(space: dict[str, Distribution], values: dict[str, Any]) -> list[str]:
    """One line per choice or end of a range that the rules of params.yaml refuse."""
    lines = []
    for key, distribution in space.items():
        for value in ends(distribution):
            if mistakes := rules.check(replaced(values, {key: value})):
                lines.append(f"{FILE}: space.{key}: {mistakes[0].removeprefix(f'{paths.PARAMS}: ')}")
    return lines


def unmeasured(space: dict[str, Distribution], recipe: dict[str, Any], options: Options) -> list[str]:
    """One line if some trial would not measure the metric."""
    needed = MEASURED_FOR.get(options.metric)
    selections = ends(space[SELECT_BY]) if SELECT_BY in space else [recipe[SELECT_BY]]
    if needed is None or set(selections) == {needed}:
        return []
    place = f"{paths.PARAMS}, and no {SELECT_BY} in space" if SELECT_BY in space else f"{paths.PARAMS}"
    return [f"{FILE}: search.metric is {options.metric}, which needs {SELECT_BY}: {needed} in {place}"]


def ends(distribution: Distribution) -> list[Any]:
    """The choices, or the two ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return [value(choice) for choice in distribution.choices]
    return [distribution.low, distribution.high]


def replaced(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of the parameters with the values of `overrides`."""
    changed = copy.deepcopy(values)
    for key, new in overrides.items():
        *parents, leaf = key.split(".")
        section = changed
        for parent in parents:
            section = section[parent]
        section[leaf] = new
    return changed


def value(drawn: Any) -> Any:
    """A value for params.yaml. Choices are stored as JSON, because Optuna's choices cannot be lists."""
    return json.loads(drawn) if isinstance(drawn, str) else drawn


def readable(drawn: Any, distribution: Distribution) -> Any:
    """A drawn value, rounded to DIGITS, so that a person can read it and type it."""
    if not isinstance(distribution, FloatDistribution):
        return drawn
    rounded = float(f"{drawn:.{9 if distribution.step else DIGITS}g}")
    return min(max(rounded, distribution.low), distribution.high)


def point(recipe: dict[str, Any], space: dict[str, Distribution]) -> dict[str, Any] | None:
    """The recipe of params.yaml as a point of the space; None if it is outside."""
    values = {}
    for key, distribution in space.items():
        current = recipe[key]
        if isinstance(distribution, CategoricalDistribution):
            current = json.dumps(current)
            inside = current in distribution.choices
        else:
            steps = (current - distribution.low) / distribution.step if distribution.step else 0.0
            inside = distribution.low <= current <= distribution.high and abs(steps - round(steps)) < GRID
        if not inside:
            return None
        values[key] = current
    return values
