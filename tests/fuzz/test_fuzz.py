"""The decoders under a coverage-guided fuzzer, from a corpus that is kept.

A long test, of FUZZ_SECONDS (10 unless set); all targets run at once. `make test` decodes the corpus, which needs no
fuzzer: atheris has wheels for Linux on x86-64 only.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS
from tests.imports import ROOT

SECONDS = os.environ.get("FUZZ_SECONDS") or "10"
ATHERIS = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)  # as in pyproject
fuzzes = pytest.mark.skipif(not ATHERIS, reason="atheris has wheels for Linux on x86-64 alone")


def start(target: str, *arguments: str) -> subprocess.Popen[str]:
    """The fuzzer as a process; what it says, tracebacks included, is in its standard output."""
    command = [sys.executable, "-m", "tests.fuzz", target, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_corpus_is_decoded_or_refused(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@fuzzes
@pytest.mark.soak
def test_no_input_that_is_found_crashes_a_decoder(tmp_path: Path) -> None:
    running = {}
    for target in TARGETS:
        shutil.copytree(CORPUS / target, tmp_path / target)  # what is found is added to the folder
        options = [f"-max_total_time={SECONDS}", "-timeout=120", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/"]
        running[target] = start(target, str(tmp_path / target), *options)
    for target, process in running.items():
        told = process.communicate(timeout=600)[0]
        crashes = [path for path in tmp_path.iterdir() if path.is_file()]
        assert process.returncode == 0, (
            f"{told[-4000:]}\nreplay: python -m tests.fuzz {target} {' '.join(map(str, crashes))}\n"
            f"and keep it: cp it to {CORPUS / target}"
        )
        assert "Done " in told, told[-2000:]


@fuzzes
def test_a_mistake_is_found_and_can_be_replayed(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"mistake")
    process = start("planted", str(tmp_path / "input"), f"-artifact_prefix={tmp_path}/")
    told = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert "ZeroDivisionError: planted" in told
