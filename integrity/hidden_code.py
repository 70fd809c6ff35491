"""Find code that Python would run instead of the code that people read and dvc.lock records.

A stage does not depend on compiled code, nor on files that merely lie beside the stages: a committed `__pycache__` or a
`tqdm.py` would change every result, but no hash.
"""

import os
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from integrity import git
from stages.common.errors import UserError

PACKAGES = ("stages", "integrity", "review")  # of the project
COMPILED = (".pyc", ".pyo", ".so", ".pyd")
CODE = (".py", *COMPILED)
IMPORTED_AT_START = {"sitecustomize", "usercustomize"}


def refuse(root: Path) -> None:
    """Raise UserError with the names of such files, if a project has any.

    __pycache__ is allowed unless Git keeps it: `rebuild.environment` makes Python look elsewhere.
    """
    if found := compiled(root):
        raise UserError(
            f"compiled code, which Python may run instead of the source: {', '.join(found)}; delete it (with `git rm` "
            "if Git keeps it)"
        )
    if found := shadowing(root):
        raise UserError(
            f"named like an installed package or a module of Python, and would replace it: {', '.join(found)}; "
            "rename it"
        )


def compiled(root: Path) -> list[str]:
    """Compiled code that Git keeps, or that lies in the project's own packages."""
    tracked = _git_files(root, "--cached", "--", ".")
    untracked = [path for path in _git_files(root, "--others", "--", *PACKAGES) if "__pycache__" not in path.split("/")]
    return sorted({path for path in [*tracked, *untracked] if path.endswith(COMPILED)})


def shadowing(root: Path) -> list[str]:
    """Modules and packages at the root, where Python looks first, that share a name with another module."""
    installed = packages_distributions()
    names = {*installed, *sys.stdlib_module_names, *IMPORTED_AT_START}
    return [
        place.name
        for place in sorted(root.iterdir())
        if place.name.partition(".")[0] in names
        and (_imported(place, place.name in installed) if place.is_dir() else place.name.endswith(CODE))
    ]


def _imported(folder: Path, installed: bool) -> bool:
    """Whether a folder would be imported instead of a package; without an __init__, only if the package has none."""
    if not installed:
        return any(file.name.startswith("__init__.") for file in folder.iterdir())
    return any(name.endswith(CODE) for _, _, names in os.walk(folder) for name in names)


def _git_files(root: Path, *options: str) -> list[str]:
    return os.fsdecode(git.run(root, "ls-files", "-z", *options)).split("\0")[:-1]
