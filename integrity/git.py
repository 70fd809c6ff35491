"""Git commands on the repository that is named, whatever repository the environment points at.

Git sets GIT_DIR, GIT_INDEX_FILE, GIT_WORK_TREE and others for its hooks, and each of them wins over the folder that a
command runs in: a checkout in a temporary clone would move the HEAD of the repository whose hook it is.
"""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from stages.common.errors import UserError


@cache
def local_variables() -> frozenset[str]:
    """The variables that tie Git to one repository; not the ones that hold configuration, such as safe.directory."""
    listed = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True)
    return frozenset(name for name in listed.stdout.split() if not name.startswith("GIT_CONFIG"))


def environment() -> dict[str, str]:
    """The environment of a program that works on another repository than the caller's. Raises UserError without Git."""
    try:
        local = local_variables()
    except FileNotFoundError:
        raise UserError(
            "git is not installed, or not in PATH; install it: versions and revisions are read with it"
        ) from None
    return {name: value for name, value in os.environ.items() if name not in local}


def run(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a Git command prints when it runs in `folder`. Raises UserError with what Git complains of, in one line."""
    settings = {
        "GIT_OPTIONAL_LOCKS": "0",  # `git status` would write the index that a running commit holds
        "LC_ALL": "C",  # the complaints are looked into
    }
    variables = {**environment(), **settings}
    done = subprocess.run(["git", *arguments], cwd=folder, env=variables, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {_complaint(done.stderr.decode(errors='replace'), folder)}")
    return done.stdout


def top(folder: Path) -> Path:
    """The top of the work tree that `folder` is in. Raises UserError if it is in none."""
    return Path(os.fsdecode(run(folder, "rev-parse", "--show-toplevel")).removesuffix("\n"))


def prefix(folder: Path) -> str:
    """Where `folder` is below the top of its work tree: `` or `a/b/`. Raises UserError if it is in none."""
    return os.fsdecode(run(folder, "rev-parse", "--show-prefix")).removesuffix("\n")


def head(folder: Path) -> str:
    """The full hash of HEAD. Raises UserError if there is no commit yet."""
    top(folder)  # complains of everything but that
    try:
        return run(folder, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
    except UserError:
        raise UserError(f"{folder} has no commit yet: `git add --all && git commit`") from None


def file(folder: Path, commit: str, path: str) -> bytes | None:
    """The bytes of a file of a commit; None if the commit has no such file. path: relative to `folder`.

    Of a symbolic link, the path that it holds. Raises UserError if Git cannot read it.
    """
    kind = run(folder, "ls-tree", "-z", commit, "--", path).split(b" ", 2)[1:2]
    return run(folder, "cat-file", "blob", f"{commit}:./{path}") if kind == [b"blob"] else None


def clone(folder: Path, commit: str, target: Path) -> Path:
    """Clone the repository that `folder` is in to `target`, at `commit`; returns where `folder` is in the clone.

    None of the hooks that a user has set up for all repositories runs. Raises UserError; of a clone that lacks some of
    its objects, with the command that gets them.
    """
    source = top(folder)
    options = ["--quiet", "--no-checkout", "--template=", "--config", f"core.hooksPath={os.devnull}"]
    try:
        if _partial(source):  # Git gets what is missing for itself, but not for a clone of the clone
            run(source, "archive", "--format=tar", f"--output={os.devnull}", commit)
        run(source, "clone", *options, str(source), str(target))
        run(target, "checkout", "--quiet", "--detach", commit)
        if run(target, "ls-files", "--deleted"):  # to `git checkout`, an object that it cannot read is no error
            raise UserError("git checkout: some files could not be read")
    except UserError as error:
        raise UserError(f"{error}{_completion(source)}") from None
    return target / prefix(folder)


def _partial(source: Path) -> bool:
    """Whether a repository was cloned with a filter: without some objects, which Git gets when it needs them."""
    return b".promisor" in run(source, "config", "--list", "--local", "--name-only")


def _completion(source: Path) -> str:
    """How a clone that was made without all objects gets them, as the end of a sentence."""
    if run(source, "rev-parse", "--is-shallow-repository").strip() == b"true":
        return "; this clone is shallow, `git fetch --unshallow` completes it"
    return "; this clone is partial, `git fetch --refetch --no-filter` completes it" if _partial(source) else ""


def _complaint(stderr: str, folder: Path) -> str:
    if "dubious ownership" in stderr:
        # Git names the folder: of a clone it is .git, which the folder above it does not cover.
        named = re.search(r"^\s*(git config --global --add safe\.directory .+)$", stderr, re.MULTILINE)
        remedy = named[1] if named else f"git config --global --add safe.directory {folder}"
        return f"{folder} belongs to another user; to trust it: {remedy}"
    if "not a git repository" in stderr:
        return (
            f"{folder} is in no Git repository (a ZIP file, or a copy without .git?); `git clone` the project, or make "
            "one of it: `git init && git add --all && git commit -m start`"
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return (lines or ["no reason given"])[0].removeprefix("fatal: ")[:200]
