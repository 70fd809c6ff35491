"""Reading params.yaml: YAML as DVC reads it, then each section checked against its schema.

A wrong value is an error of one line that names the key, the value, the allowed values and the nearest valid spelling.
The schemas are in options.py of each stage, so that a stage depends only on its own options.
"""

import io
import warnings
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.reader import ReaderError

from stages.common import paths
from stages.common.errors import UserError, one_line
from stages.common.text import nearest, shown

MAX_BYTES = 1_000_000  # a params.yaml has a few kilobytes: a larger file is a mistake, and is not parsed
MAX_DEPTH = 50  # of nested mappings and lists


class Section(BaseModel):
    """The base of every schema: no unknown keys, no implicit conversions, no NaN, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Empty(Section):
    """A choice without options."""


S = TypeVar("S", bound=Section)


class _Bounded(Composer):
    """Composes nodes like DVC's, but refuses deep nesting."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth == MAX_DEPTH:
            mark = self.parser.peek_event().start_mark
            raise MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        return super().compose_node(parent, index)


class _WithoutAliases(_Bounded):
    """Also refuses aliases (*name), which can expand without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            mark = self.parser.peek_event().start_mark
            raise MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


def load(path: Path, pipeline: bool = False) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError, in one line, for a file that is missing, too large or not YAML.

    pipeline: a dvc.yaml, which may contain aliases (*name), or nothing.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the top of the repository, where params.yaml is") from None
    return parse_mapping(content, str(path), pipeline)


def parse_mapping(content: bytes, name: str, pipeline: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file, with values as DVC reads them. name: of the file, for messages. Raises UserError.

    pipeline: as for `load`.
    """
    if len(content) > MAX_BYTES:
        raise UserError(f"{name}: larger than {MAX_BYTES:,} bytes; a file of parameters is a few kilobytes")
    try:
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()  # as DVC: every line end becomes \n
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    try:
        values = _parse(text, pipeline)
    except _NotYaml as error:
        raise UserError(f"{name}{error.place}: not valid YAML: {error}") from None
    if pipeline and values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{name}: contains no mapping of section: options")
    return values


def parse(text: str, where: str) -> Any:
    """Parse one value as YAML. where: its origin, for messages. Raises UserError."""
    try:
        return _parse(text)
    except _NotYaml as error:
        raise UserError(f"{where}: not a YAML value: {error}") from None


class _NotYaml(Exception):  # noqa: N818 - becomes a UserError
    """Why a text is not YAML, in one line. place: ":LINE:COLUMN", or empty if unknown."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(problem)
        self.place = place


def _parse(text: str, aliases: bool = False) -> Any:
    """A value as DVC reads it: like dvc.utils.serialize.parse_yaml, without importing DVC, which takes 0.3 s."""
    reader = YAML(typ="safe")
    reader.Composer = _Bounded if aliases else _WithoutAliases
    try:
        with warnings.catch_warnings(action="ignore"):  # about style, of ten lines each
            return reader.load(text)
    except ReaderError as error:
        before = text[: error.position]
        place = f":{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise _NotYaml(f"the character U+{error.character:04X} is not allowed", place) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise _NotYaml(one_line(error.problem or error.context), place) from None
    # Scalars that look like a number or a date but are not, such as 0x_ or 2024-02-31, and misplaced tags raise various
    # exceptions of Python.
    except (YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise _NotYaml(one_line(error)) from None


def flatten(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; lists and empty mappings are values. name: the file, for messages."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, here: dict[Any, Any], depth: int) -> None:
        if depth > 20 or len(flat) > 10_000:  # a YAML alias can contain itself, or grow without bound
            raise UserError(f"{name}: nested too deeply, or too large, to compare")
        for key, value in here.items():
            if isinstance(value, dict) and value:
                walk(f"{prefix}{key}.", value, depth + 1)
            else:
                flat[f"{prefix}{key}"] = value

    walk("", values, 0)
    return flat


def section(values: dict[str, Any], key: str, schema: type[S], file: Path = paths.PARAMS) -> S:
    """Check the options at `key` ("train", "optimizers.sgd") of `values` against `schema`.

    file: their origin, for messages. Raises UserError with a line per mistake.
    """
    here: Any = values
    for part in key.split("."):
        if not isinstance(here, dict) or part not in here:
            known = list(here) if isinstance(here, dict) else []
            raise UserError(f"{file}: {key}: the section is missing{nearest(part, known)}; add {_keys(schema)}")
        here = here[part]
    return checked(here, key, schema, file)


def checked(options: Any, key: str, schema: type[S], file: Path) -> S:
    """Check options against `schema`. key: their place in `file`, for messages.

    Raises UserError with a line per mistake.
    """
    if not isinstance(options, dict):
        raise UserError(f"{file}: {key} is {options!r}; allowed: a mapping with {_keys(schema)}")
    try:
        return schema.model_validate(options)
    except ValidationError as error:
        lines = [_line(key, schema, options, dict(mistake)) for mistake in error.errors()]
        raise UserError("\n".join(f"{file}: {line}" for line in lines)) from None


def _line(key: str, schema: type[Section], options: dict[str, Any], mistake: dict[str, Any]) -> str:
    """A mistake that pydantic found in the options at `key`, as one line."""
    if not mistake["loc"]:  # a rule about several options
        return f"{key}: {mistake['ctx']['error']}"
    name = str(mistake["loc"][0])
    if mistake["type"] in ("extra_forbidden", "invalid_key"):  # an unknown key, or one that is not text
        return f"{key}.{shown(name)}: unknown key{nearest(name, list(schema.model_fields))}; allowed: {_keys(schema)}"
    if mistake["type"] == "missing":
        return f"{key}.{name} is missing; allowed: {allowed(schema, name)}"
    one_as_list = len(mistake["loc"]) > 1 and not isinstance(options[name], list)  # no index in the message
    place = name if one_as_list else ".".join(str(part) for part in mistake["loc"])
    value = mistake["input"]
    text = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    field = schema.model_json_schema()["properties"][name]
    enum = field.get("items", field).get("enum", [])
    return f"{key}.{place} is {text}; allowed: {allowed(schema, name)}{nearest(str(value), enum)}"


def allowed(schema: type[Section], name: str) -> str:
    """The allowed values of an option, in words."""
    return _allowed(schema.model_json_schema()["properties"][name])


def _allowed(field: dict[str, Any]) -> str:
    """The allowed values of a field, in words, from its JSON schema."""
    if "description" in field:  # instead of a long list of names
        return str(field["description"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        least = f", {field['minItems']} or more" if "minItems" in field else ""
        most = f", {field['maxItems']} at most" if "maxItems" in field else ""
        if least and field["minItems"] == field.get("maxItems"):
            least, most = f", {field['minItems']} of them", ""
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
