"""Portable numerics do not depend on the processor. Each run is a new process."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from stages.common.errors import UserError
from stages.network import device
from tests import programs
from tests.imports import ROOT

X86 = platform.machine() in ("x86_64", "AMD64")
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

COMMAND = ["-m", "tests.numbers"]


def start(*arguments: str, emulator: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    """Run tests/numbers.py in a new process."""
    return subprocess.Popen(
        [*emulator, sys.executable, *COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> dict[str, str]:
    """The digests that it prints."""
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    numbers: dict[str, str] = json.loads(out.splitlines()[-1])
    return numbers


# One of each family of torchvision's networks, of those that take images of 32 x 32 pixels.
ARCHITECTURES = [
    *("mobilenet_v3_small", "resnet18", "efficientnet_b0", "convnext_tiny", "swin_t", "densenet121", "regnet_y_400mf"),
    *("shufflenet_v2_x0_5", "vit_b_32"),
]


@cache
def digests(numerics: str, threads: int = 2, **environment: str) -> dict[str, str]:
    return end(start(numerics, str(threads), **environment))


@pytest.mark.skipif(not X86, reason="portable numerics are for x86-64")
def test_portable_is_the_same_whatever_the_environment_says() -> None:
    first = digests("portable", 2)
    assert first["instructions"] == "AVX2"
    steered = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "SSE4_2"}
    assert digests("portable", 1, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", **steered) == first


@pytest.mark.skipif(not X86, reason="portable numerics are for x86-64")
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(ARCHITECTURES[0], marks=pytest.mark.soak)]
    + [pytest.param(name, marks=pytest.mark.night) for name in ARCHITECTURES[1:]],
)
def test_portable_is_the_same_for_torchvisions_networks(architecture: str) -> None:
    first = end(start("portable", "2", architecture))
    steered = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "SSE4_2"}
    assert end(start("portable", "1", architecture, OMP_NUM_THREADS="3", **steered)) == first


@pytest.mark.parametrize("numerics", ["portable", pytest.param("fast", marks=pytest.mark.night)])
def test_any_number_of_threads_gives_the_same_bits(numerics: str) -> None:
    first = digests(numerics, 2)
    assert digests(numerics, 1) == first
    assert digests(numerics, 3, OMP_NUM_THREADS="5") == first


@pytest.mark.skipif(not HAS_AVX512, reason="needs a processor with more than AVX2 to tell the difference")
@pytest.mark.soak
def test_fast_uses_the_widest_instructions() -> None:
    fast, portable = digests("fast"), digests("portable")
    assert fast["instructions"] == "AVX512"
    assert set(fast.values()).isdisjoint(portable.values())
    # Restricted to AVX2 by environment variables, this processor computes as an older one would.
    held = digests("fast", ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_CBWR="COMPATIBLE")
    assert held == portable


@pytest.mark.night
@pytest.mark.skipif(not X86 or sys.platform != "linux", reason="emulates processors of x86-64 on Linux")
def test_portable_is_the_same_on_intel_and_amd() -> None:
    """Intel's of 2013 and AMD's of 2017, emulated, against this one.

    MKL looks at the maker, not only at what a processor can do: see fix_numerics.
    """
    emulator = programs.need("qemu-user", "qemu-x86_64")
    emulated = [start("portable", "2", emulator=[emulator, "-cpu", name]) for name in ("Haswell", "EPYC")]
    here = digests("portable")
    assert [end(process) for process in emulated] == [here, here]


@pytest.mark.skipif(not X86, reason="portable numerics are for x86-64")
def test_a_processor_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(UserError, match="train.numerics is portable, which needs a processor with AVX2"):
        device.fix_numerics("portable", "x86_64", "train.numerics")


@pytest.mark.skipif(not HAS_AVX512, reason="needs a processor with more than AVX2 to tell the difference")
def test_calling_it_too_late_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    torch.ones(2) + 1
    with pytest.raises(RuntimeError, match="before the first tensor operation"):
        device.fix_numerics("portable", "x86_64", "train.numerics")


def test_other_architectures_print_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    device.fix_numerics("portable", "arm64", "train.numerics")
    assert "portable is for x86-64; on arm64" in capsys.readouterr().out
