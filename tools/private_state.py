"""Keep DVC's state in a folder that only its owner can write to, whatever folder dvc is called from.

DVC unpickles its state, and keeps it in a world-writable folder under /var/tmp unless core.site_cache_dir says otherwise:
another user of the machine could plant a file there that runs code (CVE-2025-69872). The committed .dvc/config cannot
say it, since DVC takes a relative path there as relative to the working directory: .dvc/config.local, which Git ignores,
says it with this clone's path. Run by `make` before anything else; takes no time, and says nothing.
"""

import re
import sys
from pathlib import Path

FOLDER = Path(".dvc/tmp/private")
CONFIG = Path(".dvc/config.local")


def main() -> None:
    """Make the folder, for this user alone, and have .dvc/config.local name it."""
    FOLDER.parent.mkdir(exist_ok=True)
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    FOLDER.chmod(0o700)  # DVC, where it comes first, makes folders that everybody may write to
    before = CONFIG.read_text(encoding="utf-8") if CONFIG.exists() else ""
    after = configured(before, FOLDER.resolve())
    if after != before:
        CONFIG.write_text(after, encoding="utf-8")


def configured(config: str, folder: Path) -> str:
    """A .dvc/config.local that names the folder. A choice of the user's own stays, and so does all else."""
    line = f'    site_cache_dir = "{folder.as_posix()}"'
    chosen = re.search(r"^\s*site_cache_dir\s*=\s*(.*)$", config, re.MULTILINE)
    if chosen:
        ours = chosen[1].strip("\"' ").endswith(f"/{FOLDER.as_posix()}")  # of this clone, or of where it stood before
        return f"{config[: chosen.start()]}{line}{config[chosen.end() :]}" if ours else config
    if section := re.search(r"^\[core\][^\n]*$", config, re.MULTILINE):
        return f"{config[: section.end()]}\n{line}{config[section.end() :]}"
    return f"{config}{'' if not config or config.endswith(chr(10)) else chr(10)}[core]\n{line}\n"


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
