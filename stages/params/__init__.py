"""Reading params.yaml: YAML as DVC reads it, then each section checked against its schema.

A wrong value ends with one line that names the key, the value, what is allowed and the nearest valid spelling.
The schemas stand beside this file, one a stage, so that a stage depends on the options it has and on no others.
"""

import difflib
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages import paths
from stages.errors import UserError

MAX_BYTES = 1_000_000  # a params.yaml is a few kilobytes: a larger one is a mistake, and need not be parsed


class Section(BaseModel):
    """The base of every schema: no unknown keys, no silent conversions, no NaN, nothing changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Empty(Section):
    """A choice that has no options."""


S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, as in DVC, and nothing surprising.

    PyYAML speaks YAML 1.1: `1e-5`, which is what `dvc exp run -S optimizers.adam.lr=1e-5` writes, would be text,
    and `no` would be false. Aliases are refused (they can grow without bound), and so is a key that stands twice
    (the last would win in silence).
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not plain text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def load(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError, in one line, for a file that is missing, too large or not YAML."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the top of the repository, where params.yaml is") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; a file of parameters is a few kilobytes")
    try:
        values = _Loader(content.decode("utf-8")).get_single_data()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else f"{path}"
        raise UserError(f"{place}: not valid YAML: {str(error.problem).splitlines()[0]}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no mapping of section: options")
    return values


def parse(text: str, where: str) -> Any:
    """One value as YAML. Raises UserError that names `where` it stood."""
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a YAML value: {str(error).splitlines()[0]}") from None


def section(values: dict[str, Any], key: str, schema: type[S]) -> S:
    """Check the options at `key` ("train", "optimizers.sgd") of `values` against `schema`.

    Raises UserError with a line a mistake.
    """
    here: Any = values
    for part in key.split("."):
        if not isinstance(here, dict) or part not in here:
            known = list(here) if isinstance(here, dict) else []
            raise UserError(f"{paths.PARAMS}: {key}: the section is missing{nearest(part, known)}")
        here = here[part]
    if not isinstance(here, dict):
        raise UserError(f"{paths.PARAMS}: {key} is {here!r}; allowed: a mapping with {_keys(schema)}")
    try:
        return schema.model_validate(here)
    except ValidationError as error:
        lines = [_line(key, schema, dict(mistake)) for mistake in error.errors()]
        raise UserError("\n".join(f"{paths.PARAMS}: {line}" for line in lines)) from None


def _line(key: str, schema: type[Section], mistake: dict[str, Any]) -> str:
    """One mistake that pydantic found, as one line."""
    if not mistake["loc"]:  # a rule about several options
        return f"{key}: {mistake['ctx']['error']}"
    name = str(mistake["loc"][0])
    if mistake["type"] in ("extra_forbidden", "invalid_key"):  # a key that is not there, or no text
        return f"{key}.{shown(name)}: unknown key{nearest(name, list(schema.model_fields))}; allowed: {_keys(schema)}"
    allowed = _allowed(schema.model_json_schema()["properties"][name])
    if mistake["type"] == "missing":
        return f"{key}.{name} is missing; allowed: {allowed}"
    place = ".".join(str(part) for part in mistake["loc"])
    value = mistake["input"]
    text = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    enum = schema.model_json_schema()["properties"][name].get("enum", [])
    return f"{key}.{place} is {text}; allowed: {allowed}{nearest(str(value), enum)}"


def _allowed(field: dict[str, Any]) -> str:
    """What a field takes, in words, from its JSON schema."""
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        least = f", {field['minItems']} or more" if "minItems" in field else ""
        most = f", {field['maxItems']} at most" if "maxItems" in field else ""
        return f"a list ({_allowed(field['items'])}){least}{most}"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true | false"}
    text = words[field["type"]]
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    return ", ".join([text, *(f"{word} {field[bound]:,}" for bound, word in bounds.items() if bound in field)])


def _keys(schema: type[Section]) -> str:
    return ", ".join(schema.model_fields) or "nothing ({})"


def shown(key: object) -> str:
    """A key as it stands in a line of text, which it may not break."""
    return str(key) if str(key).isprintable() else repr(key)


def nearest(name: str, known: list[str]) -> str:
    """A hint, " (did you mean …?)", at the known name most like `name`; or nothing."""
    close = difflib.get_close_matches(name, [str(item) for item in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
