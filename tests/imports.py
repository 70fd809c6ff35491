"""Which files of this repository a module imports, directly or through others, read from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def closure(module: str) -> set[str]:
    """The files, relative to the repository, that `import module` reads, those of imports inside functions too."""
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        path = _file(name)
        if path is None or path in found:
            continue
        found.add(path)
        todo += [parent for parent in _parents(name) if parent]
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative imports are not followed; write them in full"
                todo += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _file(name: str) -> str | None:
    base = name.replace(".", "/")
    for path in (f"{base}/__init__.py", f"{base}.py"):
        if name and (ROOT / path).is_file():
            return path
    return None
