"""Reading objects from DVC's remotes, with one-line errors whatever the kind of remote."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.errors import UserError, one_line

CHUNK = 1 << 20  # bytes


class MissingObjectError(Exception):
    """The remote lacks an object. The text says so, and what to do."""


class UnreadableObjectError(Exception):
    """The remote fails to deliver an object. The text gives the reason."""


@dataclass(frozen=True)
class Remote:
    """A remote as DVC opens it."""

    name: str
    odb: Any
    jobs: int  # objects to fetch at once: the remote's configuration, or DVC's default for its kind

    def place(self, oid: str) -> str:
        """The URL of an object, without a password."""
        return one_line(self.odb.fs.unstrip_protocol(self.odb.oid_to_path(oid)))

    def read(self, path: str) -> Iterator[bytes]:
        """The content of a path, in chunks. Raises MissingObjectError and UnreadableObjectError."""
        try:
            with self.odb.fs.open(path, "rb") as source:
                while chunk := source.read(CHUNK):
                    yield chunk
        except GeneratorExit:
            raise
        except Exception as error:  # each kind of remote has its own errors: botocore's, asyncssh's, aiohttp's, …
            cause = error.__cause__ or error
            # With HTTP, a server that is down or fails is also "no such file": the cause tells the difference.
            is_down = cause is not error and (isinstance(cause, OSError) or getattr(cause, "status", 404) != 404)
            if isinstance(error, FileNotFoundError) and not is_down:
                if self.odb.fs.protocol == "local" and not Path(self.odb.path).parents[1].is_dir():  # not files/md5
                    raise MissingObjectError(f"its folder {Path(self.odb.path).parents[1]} is missing") from None
                raise MissingObjectError("not there; `dvc push` (or `dvc exp push`) where it was made") from None
            raise UnreadableObjectError(f"cannot be read: {one_line(cause)}") from None


def open_remote(repo: Any, name: str | None, hash_name: str = "md5") -> Remote:
    """Open a remote by its name; None: the default one. Raises UserError."""
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException

    shown = name or repo.config["core"].get("remote")
    try:
        odb = repo.cloud.get_remote_odb(name, "pull", hash_name=hash_name)
        return Remote(str(shown), odb, odb.fs.jobs)
    except NoRemoteError:
        raise UserError("no remote is set: `dvc remote add --default NAME URL`") from None
    except (DvcException, ImportError, OSError, ValueError) as error:  # a wrong URL, a missing package, …
        raise UserError(f"remote {shown!r} cannot be used: {one_line(error)}") from None
