"""Reading dvc.lock: which files each stage read and wrote, by their MD5."""

from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from stages.common.errors import UserError, one_line


class LockedFile(BaseModel):
    """A dependency or an output in dvc.lock. md5: of the content; of a folder's list of files if it ends in .dir."""

    path: str
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")] | None = None
    size: Annotated[int, Field(ge=0)] | None = None  # bytes


class LockedStage(BaseModel):
    """A stage in dvc.lock: what it read and what it wrote when it last ran."""

    cmd: str | list[str] | None = None
    params: dict[str, dict[str, Any]] = {}  # file -> key -> value
    deps: list[LockedFile] = []
    outs: list[LockedFile] = []


class Lock(BaseModel):
    """dvc.lock."""

    stages: dict[str, LockedStage] = {}

    @cached_property
    def writers(self) -> dict[str, list[str]]:
        """Output -> the stages that dvc.lock says wrote it: one, unless somebody edited dvc.lock."""
        writers: dict[str, list[str]] = {}
        for name, stage in self.stages.items():
            for out in stage.outs:
                writers.setdefault(out.path, []).append(name)
        return writers

    @cached_property
    def outs(self) -> dict[str, LockedFile]:
        """Path -> output, in the order of the pipeline; without those named more than once, which prove nothing."""
        outs = {out.path: out for stage in self.stages.values() for out in stage.outs}
        return {path: out for path, out in outs.items() if len(self.writers[path]) == 1}

    @property
    def contradictions(self) -> list[tuple[str, LockedFile, str]]:
        """(stage, dependency, writer) wherever a stage read other bytes than the writer of that file wrote."""
        return [
            (name, dep, self.writers[dep.path][0])
            for name, stage in self.stages.items()
            for dep in stage.deps
            if dep.path in self.outs and dep.md5 != self.outs[dep.path].md5
        ]


def parse_lock(content: bytes, name: str) -> Lock:
    """Read dvc.lock as DVC does. name: the file, for messages. Raises UserError."""
    from dvc.utils.serialize import ParseError, parse_yaml

    try:
        return Lock.model_validate(parse_yaml(content.decode("utf-8"), name))
    except ParseError:
        raise UserError(f"{name}: not valid YAML") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: {one_line(error)}") from None
