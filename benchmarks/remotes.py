"""Push and pull of the committed run, with a server of each kind on this machine.

    PYTHONPATH=. .venv/bin/python -m benchmarks.remotes

In turn: push to an empty remote, push with nothing to push, pull into a fresh clone with and without `verify`. It
reports the seconds of each command, the bytes stored, and the bytes sent in both directions. Servers and their
configuration are those of the tests. Needs the development requirements; installs nginx and sshd if they are missing.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.summary import spread
from tests.clones import Clone
from tests.remote_servers import RECIPES, SERVERS, Remote, of_a_reader, paste

REPEATS = 3


def timed(clone: Clone, remote: Remote, *command: str) -> tuple[float, int]:
    """Run a dvc command; returns its seconds, and the bytes sent in both directions."""
    before = remote.proxy.bytes if remote.proxy else 0
    start = time.perf_counter()
    clone.dvc(*command)
    return time.perf_counter() - start, (remote.proxy.bytes if remote.proxy else 0) - before


def clone_of(source: Path, folder: Path, remote: Remote) -> Clone:
    """A fresh clone with its own state of DVC."""
    folder.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(source), str(folder / "clone")], check=True)
    clone = Clone(folder / "clone")
    clone.environment.update(remote.environment)
    return clone


def measure(kind: str, source: Path, scratch: Path) -> dict[str, Any]:
    """Run every command once; returns its seconds and bytes."""
    with SERVERS[kind](scratch) as remote:
        owner = clone_of(source, scratch / "owner", remote)
        shutil.copytree(source / ".dvc/cache", owner.path / ".dvc/cache", copy_function=os.link)
        paste(owner, remote, RECIPES[kind])
        push, sent = timed(owner, remote, "push")
        stored = remote.objects()
        again, _ = timed(owner, remote, "push")
        result = {"push_seconds": push, "push_again_seconds": again, "push_wire_bytes": sent}
        for name, verify in (("pull", "true"), ("pull_unverified", "false")):
            reader = clone_of(source, scratch / name, remote)
            shutil.copy(owner.path / ".dvc/config", reader.path / ".dvc/config")
            paste(reader, remote, of_a_reader(RECIPES[kind]))
            reader.dvc("remote", "modify", "storage", "verify", verify)
            result[f"{name}_seconds"], result[f"{name}_wire_bytes"] = timed(reader, remote, "pull")
        return {**result, "stored_bytes": sum(stored.values()), "stored_files": len(stored)}


def main() -> None:
    """Print JSON."""
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        subprocess.run(["git", "clone", "--quiet", ".", str(source)], check=True)
        shutil.copytree(".dvc/cache/files", source / ".dvc/cache/files")
        for kind in SERVERS:
            runs = []
            for number in range(REPEATS):
                scratch = Path(temporary) / f"{kind}-{number}"
                scratch.mkdir()
                runs.append(measure(kind, source, scratch))
                shutil.rmtree(scratch)
            rows[kind] = {
                name: spread([run[name] for run in runs]) if name.endswith("seconds") else runs[-1][name]
                for name in runs[0]
            }
            rows[kind]["verify_ratio"] = spread([run["pull_seconds"] / run["pull_unverified_seconds"] for run in runs])
    print(json.dumps({"remotes": rows}))


if __name__ == "__main__":
    main()
