"""What is fuzzed: the decoders of what others wrote. Each may refuse in a line, and do nothing else but decode."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from integrity.rules import check
from stages.common import params
from stages.common.errors import UserError
from stages.dataset import idx, packed
from stages.network import model_file

CORPUS = Path(__file__).parent / "corpus"  # a folder a target, of inputs that reach far: kept, and begun from
_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-")


def _one_line(error: Exception) -> None:
    if len(str(error).splitlines()) != 1:
        raise AssertionError(f"not one line: {error!r}")


def decode_idx(content: bytes) -> None:
    """An IDX file: what is decoded is encoded to the same bytes."""
    try:
        array = idx.decode(content)
    except ValueError as error:
        _one_line(error)
    else:
        if idx.encode(array) != content:
            raise AssertionError("decodes to another array than it encodes")


def read_model(content: bytes) -> None:
    """A model file, and a packed split, which are both safetensors."""
    folder = Path(_FOLDER.name) / "split"
    packed.write_index(folder, [packed.Row(images=1, sha256="0" * 64)])
    path = folder / packed.shard_name(0)
    path.write_bytes(content)
    with suppress(UserError):
        model_file.read(path)
    with suppress(UserError):
        packed.open_split(folder, (1, 1, 1), 2)


def read_params(content: bytes) -> None:
    """A params.yaml, checked against every schema, as `make repro` does first."""
    path = Path(_FOLDER.name) / "params.yaml"
    path.write_bytes(content)
    try:
        values = params.load(path)
    except UserError as error:
        _one_line(error)
        return
    for line in check(values):
        if not line.startswith("params.yaml: "):
            raise AssertionError(f"names no file: {line}")


def planted(content: bytes) -> None:
    """A decoder with a mistake, which shows that a mistake is reported."""
    if content.startswith(b"mistake"):
        raise ZeroDivisionError("planted")


TARGETS: dict[str, Callable[[bytes], None]] = {"idx": decode_idx, "model": read_model, "params": read_params}
