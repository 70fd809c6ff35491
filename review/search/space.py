"""search.yaml: what `make search` tries and how long, checked against params.yaml before anything runs."""

import copy
import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, model_validator

from integrity import revisions, rules
from stages.common import params, paths
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.text import nearest, shown

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

FILE = Path("search.yaml")
PIPELINE = Path("dvc.yaml")
SEED = "train.seed"
HIGHER_IS_BETTER = {"validation_accuracy": True, "validation_balanced_accuracy": True, "validation_loss": False}
MEASURED_FOR = {"validation_balanced_accuracy": "balanced_accuracy"}  # the train.select_by that a metric needs
CHOSEN_BY = {"augmentations": "train.augmentation"}  # sections of which DVC reads all blocks, and train the chosen ones
DIGITS = 4  # of a number that is drawn: one that a person can read and write down
GRID = 1e-6  # steps that a value may be off the grid of its range: rounding
BLOCK = re.compile(r"(\w+)\.\$\{([\w.]+)\}")  # of dvc.yaml: `optimizers.${train.optimizer}`


class Options(Section):
    """Section `search`."""

    metric: Literal["validation_accuracy", "validation_balanced_accuracy", "validation_loss"]
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
    def _a_spread_needs_two(self) -> Self:
        if self.final_seeds == 1:
            raise ValueError("final_seeds is 1, which shows no spread; allowed: 0, or 2 to 100")
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
    """What search.yaml says. space: key of params.yaml -> what it is drawn from. recipe: all of params.yaml, by key."""

    options: Options
    space: dict[str, Distribution]
    recipe: dict[str, Any]
    definition: dict[str, Any]  # section `space` as it was written

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is."""
        return HIGHER_IS_BETTER[self.options.metric]


def read() -> Plan:
    """Read search.yaml and params.yaml. Raises UserError with a line for each mistake."""
    rules.read()
    values = params.load(paths.PARAMS)
    if not FILE.is_file():
        raise UserError(f"{FILE}: no such file; it says what to try: docs/search.md has one to begin with")
    given = params.load(FILE)
    known = ["search", "space"]
    if wrong := [key for key in given if key not in known]:
        raise UserError(f"{FILE}: {shown(wrong[0])}: unknown section{nearest(str(wrong[0]), known)}; allowed: {known}")
    options = params.section(given, "search", Options, FILE)
    definition = given.get("space")
    if not isinstance(definition, dict) or not definition:
        raise UserError(f"{FILE}: space: names no parameter; add one, such as optimizers.adam.lr: {{low: …, high: …}}")
    if not values["preprocess"]["validation_fraction"]:
        raise UserError(f"{paths.PARAMS}: preprocess.validation_fraction is 0: a search needs validation images")
    needed = MEASURED_FOR.get(options.metric, values["train"]["select_by"])
    if values["train"]["select_by"] != needed:
        raise UserError(
            f"{FILE}: search.metric is {options.metric}, which needs train.select_by: {needed} in params.yaml"
        )
    recipe = revisions.flatten(values, paths.PARAMS.as_posix())
    blocks = read_by_train()
    space, lines = {}, []
    for key in definition:
        try:
            space[key] = dimension(str(key), definition, recipe, blocks)
        except UserError as error:
            lines.append(str(error))
    lines = lines or unread(definition, recipe, blocks) or refused(space, values)
    if lines:
        raise UserError("\n".join(lines))
    return Plan(options, space, recipe, definition)


def read_by_train() -> dict[str, str]:
    """The sections of params.yaml that train reads, by dvc.yaml: name -> the key that chooses a block of it, or ""."""
    blocks: dict[str, str] = {}
    for entry in params.load(PIPELINE)["stages"]["train"]["params"]:
        match = BLOCK.fullmatch(str(entry))
        blocks[match[1] if match else str(entry).partition(".")[0]] = match[2] if match else ""
    return {**blocks, **{name: chooser for name, chooser in CHOSEN_BY.items() if name in blocks}}


def dimension(key: str, definition: dict[str, Any], recipe: dict[str, Any], blocks: dict[str, str]) -> Distribution:
    """What a key is drawn from. Raises UserError."""
    where = f"{FILE}: space.{shown(key)}"
    known = [name for name in recipe if name.partition(".")[0] in blocks and name != SEED]
    if key == SEED:
        raise UserError(f"{where}: a seed is luck and no setting; final_seeds compares several")
    if key not in known:
        why = "train does not read it" if key in recipe else f"unknown key of {paths.PARAMS}"
        raise UserError(f"{where}: {why}{nearest(key, known)}; allowed: keys of {', '.join(blocks)}")
    drawn = params.checked(definition[key], f"space.{key}", Dimension, FILE)
    if drawn.choices is not None:
        return CategoricalDistribution([json.dumps(value) for value in drawn.choices])
    now = recipe[key]
    if isinstance(now, bool) or not isinstance(now, int | float):
        raise UserError(f"{where}: {key} is {now!r}, which has no range; list `choices`")
    low, high = drawn.low or 0, drawn.high or 0  # which are there, by the schema
    if all(isinstance(number, int) for number in (now, low, high, drawn.step or 1)):
        return IntDistribution(int(low), int(high), log=drawn.log, step=int(drawn.step or 1))
    return FloatDistribution(low, high, log=drawn.log, step=drawn.step)


def unread(definition: dict[str, Any], recipe: dict[str, Any], blocks: dict[str, str]) -> list[str]:
    """A line for each key of a block that no trial chooses, such as optimizers.sgd with another train.optimizer."""
    lines = []
    for key in definition:
        section, name = key.split(".")[:2]
        if not (chooser := blocks[section]):
            continue
        chosen = definition[chooser]["choices"] if chooser in definition else [recipe[chooser]]
        if not any(name in choice if isinstance(choice, list) else name == choice for choice in chosen):
            said = f"{chooser} is {' | '.join(map(str, chosen))}"
            lines.append(f"{FILE}: space.{key}: no trial reads it, since {said}; leave it out, or change {chooser}")
    return lines


def refused(space: dict[str, Distribution], values: dict[str, Any]) -> list[str]:
    """A line for each choice, and each end of a range, that the rules of params.yaml refuse."""
    lines = []
    for key, distribution in space.items():
        for value in ends(distribution):
            if mistakes := rules.check(replaced(values, {key: value})):
                lines.append(f"{FILE}: space.{key}: {mistakes[0].removeprefix(f'{paths.PARAMS}: ')}")
    return lines


def ends(distribution: Distribution) -> list[Any]:
    """The choices, or the two ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return [value(choice) for choice in distribution.choices]
    return [distribution.low, distribution.high]


def replaced(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of the parameters with other values at some keys."""
    changed = copy.deepcopy(values)
    for key, new in overrides.items():
        *parents, leaf = key.split(".")
        here = changed
        for parent in parents:
            here = here[parent]
        here[leaf] = new
    return changed


def value(drawn: Any) -> Any:
    """A value as params.yaml has it: a choice is kept as JSON, since Optuna knows no lists."""
    return json.loads(drawn) if isinstance(drawn, str) else drawn


def readable(drawn: Any, distribution: Distribution) -> Any:
    """A value that was drawn, with no more digits than a person needs to write it down."""
    if not isinstance(distribution, FloatDistribution):
        return drawn
    rounded = float(f"{drawn:.{9 if distribution.step else DIGITS}g}")
    return min(max(rounded, distribution.low), distribution.high)


def point(recipe: dict[str, Any], space: dict[str, Distribution]) -> dict[str, Any] | None:
    """The recipe of params.yaml as a point of the space; None where it is outside."""
    found = {}
    for key, distribution in space.items():
        now = recipe[key]
        if isinstance(distribution, CategoricalDistribution):
            now = json.dumps(now)
            inside = now in distribution.choices
        else:
            steps = (now - distribution.low) / distribution.step if distribution.step else 0.0
            inside = distribution.low <= now <= distribution.high and abs(steps - round(steps)) < GRID
        if not inside:
            return None
        found[key] = now
    return found
