"""Code that Python would run in place of the code that people read, and that dvc.lock names.

DVC leaves compiled code out of what a stage depends on, and looks at no file that only lies beside the stages: a
committed `__pycache__` or a `tqdm.py` would change every result, and no hash.
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
    """Raise UserError if a project has such code, with the names of the files.

    What a run leaves in __pycache__ may stay as long as Git does not keep it: `rebuild.environment` has Python look
    elsewhere.
    """
    if found := compiled(root):
        raise UserError(
            f"compiled code, which Python may run in place of the source beside it: {', '.join(found)}; delete it (and "
            "`git rm` it if Git keeps it)"
        )
    if found := shadowing(root):
        raise UserError(
            "named like an installed package or a module of Python, which it would replace: "
            f"{', '.join(found)}; rename it"
        )


def compiled(root: Path) -> list[str]:
    """Compiled code that Git keeps, and what of it lies beside the project's own packages."""
    kept = _listed(root, "--cached", "--", ".")
    beside = [
        path for path in _listed(root, "--others", "--", *PACKAGES) if "__pycache__" not in path.split("/")
    ]  # Python reads __pycache__ elsewhere here
    return sorted({path for path in [*kept, *beside] if path.endswith(COMPILED)})


def shadowing(root: Path) -> list[str]:
    """Modules and packages at the root, where Python looks first, with the name of another that can be imported."""
    installed = packages_distributions()
    names = {*installed, *sys.stdlib_module_names, *IMPORTED_AT_START}
    return [
        place.name
        for place in sorted(root.iterdir())
        if place.name.partition(".")[0] in names
        and (_imported(place, place.name in installed) if place.is_dir() else place.name.endswith(CODE))
    ]


def _imported(folder: Path, installed: bool) -> bool:
    """Whether a folder would be imported in place of a package: one without an __init__ only if that one has none."""
    if not installed:
        return any(file.name.startswith("__init__.") for file in folder.iterdir())
    return any(name.endswith(CODE) for _, _, names in os.walk(folder) for name in names)


def _listed(root: Path, *options: str) -> list[str]:
    return os.fsdecode(git.run(root, "ls-files", "-z", *options)).split("\0")[:-1]
