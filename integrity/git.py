"""Git commands on a given repository, whatever repository the environment points at.

Git sets GIT_DIR, GIT_INDEX_FILE, GIT_WORK_TREE and others for its hooks, and each overrides the working directory: a
checkout in a temporary clone would move the HEAD of the repository whose hook is running.
"""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from stages.common.errors import UserError


@cache
def local_variables() -> frozenset[str]:
    """The variables that select a repository; not those that hold configuration, such as safe.directory."""
    listed = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True)
    return frozenset(name for name in listed.stdout.split() if not name.startswith("GIT_CONFIG"))


def environment() -> dict[str, str]:
    """The environment for a program that works on another repository. Raises UserError without Git."""
    try:
        local = local_variables()
    except FileNotFoundError:
        raise UserError("git is not installed, or not in PATH; install it to read versions and revisions") from None
    return {name: value for name, value in os.environ.items() if name not in local}


def run(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run a Git command in `folder`; returns its output. Raises UserError with Git's message, in one line."""
    settings = {
        "GIT_OPTIONAL_LOCKS": "0",  # `git status` would write the index while a commit holds it
        "LC_ALL": "C",  # `_message` matches the English texts
    }
    variables = {**environment(), **settings}
    done = subprocess.run(["git", *arguments], cwd=folder, env=variables, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {_message(done.stderr.decode(errors='replace'), folder)}")
    return done.stdout


def top(folder: Path) -> Path:
    """The top of the work tree around `folder`. Raises UserError if there is none."""
    return Path(os.fsdecode(run(folder, "rev-parse", "--show-toplevel")).removesuffix("\n"))


def prefix(folder: Path) -> str:
    """The path of `folder` below the top of its work tree: "" or "a/b/". Raises UserError if there is none."""
    return os.fsdecode(run(folder, "rev-parse", "--show-prefix")).removesuffix("\n")


def head(folder: Path) -> str:
    """The full hash of HEAD. Raises UserError if there is no commit yet."""
    top(folder)  # raises all other errors
    try:
        return run(folder, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
    except UserError:
        raise UserError(f"{folder} has no commit yet: `git add --all && git commit`") from None


def file(folder: Path, commit: str, path: str) -> bytes | None:
    """The bytes of a file in a commit; None if the commit lacks it. path: relative to `folder`.

    For a symbolic link, the path it points to. Raises UserError if Git cannot read the file.
    """
    kind = run(folder, "ls-tree", "-z", commit, "--", path).split(b" ", 2)[1:2]
    return run(folder, "cat-file", "blob", f"{commit}:./{path}") if kind == [b"blob"] else None


def changed(folder: Path, *paths: str) -> list[str]:
    """The tracked files below `folder` that differ from HEAD, or those of them in `paths`; relative to `folder`.

    `git status` never writes the index when GIT_OPTIONAL_LOCKS is 0; `git diff` does, once time stamps have changed.
    """
    options = ["--porcelain", "-z", "--untracked-files=no", "--no-renames"]
    entries = run(folder, "status", *options, "--", *(paths or ["."])).split(b"\0")[:-1]  # "XY path from the top"
    return sorted(os.fsdecode(entry[3:]).removeprefix(prefix(folder)) for entry in entries)


def clone(folder: Path, commit: str, target: Path) -> Path:
    """Clone the repository around `folder` to `target`, at `commit`; returns the path of `folder` in the clone.

    The hooks that the user configured for all repositories do not run. Raises UserError; if the clone lacks objects,
    with the command that fetches them.
    """
    source = top(folder)
    options = ["--quiet", "--no-checkout", "--template=", "--config", f"core.hooksPath={os.devnull}"]
    try:
        if is_partial(source):  # Git fetches missing objects on its own, but not for a clone of the clone
            run(source, "archive", "--format=tar", f"--output={os.devnull}", commit)
        run(source, "clone", *options, str(source), str(target))
        run(target, "checkout", "--quiet", "--detach", commit)
        if run(target, "ls-files", "--deleted"):  # `git checkout` succeeds although it cannot read an object
            raise UserError("git checkout: some files could not be read")
    except UserError as error:
        raise UserError(f"{error}{_fetch_hint(source)}") from None
    return target / prefix(folder)


@cache
def is_partial(root: Path) -> bool:
    """Whether a repository lacks objects on purpose (git clone --filter); Git fetches them when it needs them."""
    return b".promisor\n" in run(root, "config", "--list", "--name-only")


def _fetch_hint(source: Path) -> str:
    """The command that fetches what a shallow or partial clone lacks, as the end of a sentence."""
    if run(source, "rev-parse", "--is-shallow-repository").strip() == b"true":
        return "; this clone is shallow, `git fetch --unshallow` completes it"
    return "; this clone is partial, `git fetch --refetch --no-filter` completes it" if is_partial(source) else ""


def _message(stderr: str, folder: Path) -> str:
    if "dubious ownership" in stderr:
        # Git names the folder: in a clone that is .git, which trusting the folder above does not cover.
        command = re.search(r"^\s*(git config --global --add safe\.directory .+)$", stderr, re.MULTILINE)
        remedy = command[1] if command else f"git config --global --add safe.directory {folder}"
        return f"{folder} belongs to another user; to trust it: {remedy}"
    if "not a git repository" in stderr:
        return (
            f"{folder} is in no Git repository (a ZIP file, or a copy without .git?); `git clone` the project, or make "
            "one of it: `git init && git add --all && git commit -m start`"
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return (lines or ["no reason given"])[0].removeprefix("fatal: ")[:200]
