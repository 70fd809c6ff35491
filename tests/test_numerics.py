"""Numerics that do not depend on what a processor could do, each run in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from stages import device
from stages.errors import UserError
from tests.imports import ROOT

X86 = platform.machine() in ("x86_64", "AMD64")
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

# What a step of training and a prediction end in, of the default network.
PROGRAM = """
import hashlib, sys, torch
from stages import device, models, params
from stages.params import train
from stages.augmentation import affine
chosen = train.read(params.load(__import__("pathlib").Path("params.yaml")))
device.set_up("cpu", int(sys.argv[2]), sys.argv[1], "train.device")
torch.manual_seed(0)
model = models.build(chosen.model, chosen.model_options, (1, 28, 28), 10, [0.13], [0.31])
images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
images = affine(images, 10, 0.1, 0.1, 5, 1.0, 5, False)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), torch.arange(64) % 10)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
digest = hashlib.sha256()
for tensor in model.state_dict().values():
    digest.update(tensor.contiguous().numpy().tobytes())
print(torch.backends.cpu.get_cpu_capability(), digest.hexdigest())
"""


def digest(numerics: str, threads: int = 2, **environment: str) -> str:
    """The instruction set, and a digest of the weights, that PROGRAM ends in."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, numerics, str(threads)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.splitlines()[-1]


@pytest.mark.skipif(not X86, reason="portable numerics are for x86-64")
def test_portable_is_the_same_whatever_the_environment_says() -> None:
    first = digest("portable")
    assert first.startswith("AVX2 ")
    assert digest("portable", ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41", MKL_CBWR="SSE4_2") == first
    assert digest("portable", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1") == first


@pytest.mark.skipif(not HAS_AVX512, reason="needs a processor with more than AVX2 to tell the difference")
def test_fast_is_what_the_processor_can_do() -> None:
    fast, portable = digest("fast"), digest("portable")
    assert fast.split()[0] == "AVX512"
    assert fast.split()[1] != portable.split()[1]
    # The same processor held to AVX2 from outside is what an older one would do.
    held = digest("fast", ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_CBWR="AVX2")
    assert held == portable


@pytest.mark.skipif(not X86, reason="portable numerics are for x86-64")
def test_a_processor_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(UserError, match="train.numerics is portable, which needs a processor with AVX2"):
        device.fix_numerics("portable", "x86_64", "train.numerics")


@pytest.mark.skipif(not HAS_AVX512, reason="needs a processor with more than AVX2 to tell the difference")
def test_too_late_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    torch.ones(2) + 1
    with pytest.raises(RuntimeError, match="before the first tensor operation"):
        device.fix_numerics("portable", "x86_64", "train.numerics")


def test_other_processors_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    device.fix_numerics("portable", "arm64", "train.numerics")
    assert "portable is for x86-64; on arm64" in capsys.readouterr().out
