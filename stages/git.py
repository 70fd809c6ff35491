"""Git commands on the repository that is named, whatever repository the environment points at.

Git sets GIT_DIR, GIT_INDEX_FILE, GIT_WORK_TREE and others for its hooks, and each of them wins over the folder that a
command runs in: a checkout in a temporary clone would move the HEAD of the repository whose hook it is.
"""

import os
import subprocess
from functools import cache
from pathlib import Path

from stages.errors import UserError


@cache
def _local_variables() -> frozenset[str]:
    """The variables that tie Git to one repository; not the ones that hold configuration, such as safe.directory."""
    listed = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True)
    return frozenset(name for name in listed.stdout.split() if not name.startswith("GIT_CONFIG"))


def environment() -> dict[str, str]:
    """The environment of a program that works on another repository than the caller's. Raises UserError without Git."""
    try:
        local = _local_variables()
    except FileNotFoundError:
        raise UserError(
            "git is not installed, or not in PATH; install it: versions and revisions are read with it"
        ) from None
    return {name: value for name, value in os.environ.items() if name not in local}


def run(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a Git command prints when it runs in `folder`. Raises UserError with what Git complains of, in one line."""
    english = {**environment(), "LC_ALL": "C"}  # _complaint reads what Git says
    done = subprocess.run(["git", *arguments], cwd=folder, env=english, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {_complaint(done.stderr.decode(errors='replace'), folder)}")
    return done.stdout


def _complaint(stderr: str, folder: Path) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if "dubious ownership" in stderr:
        remedy = f"git config --global --add safe.directory {folder}"
        remedy = next((line for line in lines if line.startswith("git config")), remedy)  # names Git's top folder
        return f"{folder} belongs to another user; to trust it: {remedy}"
    return (lines or ["no reason given"])[0].removeprefix("fatal: ")[:200]
