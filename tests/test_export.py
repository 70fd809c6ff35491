"""The export to ONNX: the same predictions, the same bytes on any machine; only recorded files are run."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from export import paths as exported
from export import run, runtime
from export.convert import convert
from export.runtime import Description, Network
from stages.common import paths
from stages.common.errors import UserError
from stages.dataset import packed
from stages.network import model_file, models
from stages.network.inference import predict
from stages.network.model_file import Spec
from tests import inside
from tests.clones import Clone
from tests.imports import ROOT, closure

IMAGES = 600  # three parts; the last one is not full
CHANNELS = [4, 8]
OPTIONS = {"channels": CHANNELS, "kernel_sizes": [3, 3], "paddings": [1, 1], "pool_sizes": [2, 2]}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return models.build("cnn", {**OPTIONS, "hidden": 16, "dropout": 0.0}, (1, 12, 8), 3, [0.4], [0.3])


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 12, 8), dtype=np.uint8)


def workplace(path: Path) -> Path:
    """A folder with an untrained network and a test set."""
    text = (ROOT / paths.PARAMS).read_text(encoding="utf-8").replace("numerics: portable", "numerics: fast")
    path.mkdir()
    (path / paths.PARAMS).write_text(text, encoding="utf-8")
    spec = Spec(
        format=3,
        model="cnn",
        options={**OPTIONS, "hidden": 16, "dropout": 0.0},
        image_shape=[1, 12, 8],
        classes=["a", "b", "é"],
        output="softmax",
    )
    model_file.write(path / paths.MODEL, network(0), spec, temperature=0.5)
    packed.write(path / paths.TEST, images(), np.arange(IMAGES) % 3)
    return path


def export(folder: Path, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-m", "export.run"], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace whose network is exported."""
    folder = workplace(tmp_path_factory.mktemp("export") / "first")
    export(folder)
    return folder


@pytest.fixture
def there(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_the_exported_network_gives_the_log_probabilities_of_torch(there: Path) -> None:
    onnx = Network(runtime.read_file(exported.MODEL))
    model, spec = model_file.read(paths.MODEL)
    ours = predict(model, images(), "softmax", torch.device("cpu")).numpy()
    theirs = onnx.outputs(images())
    assert theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-4
    record = json.loads(exported.RECORD.read_text(encoding="utf-8"))
    assert record.pop("log_probability_difference_below") <= 1e-4
    assert record == {
        "sha256": hashlib.sha256(exported.MODEL.read_bytes()).hexdigest(),
        "model_sha256": hashlib.sha256(paths.MODEL.read_bytes()).hexdigest(),
        "images": IMAGES,
        "changed_predictions": 0,
    }
    described = onnx.description
    assert (described.classes, described.image_shape) == (spec.classes, spec.image_shape)
    assert described.model_sha256 == record["model_sha256"]
    assert described.training_mean == pytest.approx(0.4)


def test_any_number_of_images_and_rows_are_independent(there: Path) -> None:
    onnx = Network(runtime.read_file(exported.MODEL))
    together = onnx.outputs(images())
    for index in (0, 255, 256, IMAGES - 1):
        assert (onnx.outputs(images()[index : index + 1])[0] == together[index]).all()
    assert onnx.outputs(images()[:5], part_size=5) == pytest.approx(together[:5], abs=1e-5)


def test_only_the_recorded_file_is_run(there: Path) -> None:
    content = exported.MODEL.read_bytes()
    exported.MODEL.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="its SHA-256 is not the one in metrics/export.json; `make export`"):
        runtime.read_file(exported.MODEL)
    exported.MODEL.write_bytes(content)
    assert runtime.read_file(exported.MODEL) == content
    exported.RECORD.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics/export.json: sha256: Field required; `make export` writes it again"):
        runtime.read_file(exported.MODEL)
    exported.RECORD.unlink()
    with pytest.raises(UserError, match=r"cannot be checked, because metrics/export.json does not exist"):
        runtime.read_file(exported.MODEL)
    exported.MODEL.unlink()
    with pytest.raises(UserError, match=r"model.onnx: no such file; `make export` writes it"):
        runtime.read_file(exported.MODEL)


def test_values_are_compared_in_standard_deviations() -> None:
    ours = np.array([[1000.0], [3000.0]], dtype=np.float32)
    assert run.compare_values(ours, ours, 1000) == {"scaled_difference_below": 1e-6}
    assert run.compare_values(ours, ours + np.float32(0.5), 1000) == {"scaled_difference_below": 1e-3}
    for other in (ours + 2, ours * np.float32(math.nan)):
        with pytest.raises(UserError, match=r"^the predicted values change in ONNX by up to (0\.002|nan) standard dev"):
            run.compare_values(ours, other, 1000)


def test_a_changed_prediction_is_refused_and_nothing_written(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = exported.MODEL.read_bytes()
    exported.MODEL.unlink()
    _, spec = model_file.read(paths.MODEL)
    model_file.write(paths.MODEL, network(1), spec)
    monkeypatch.setattr(run, "convert", lambda *_: content)  # an exporter that returns another network
    with pytest.raises(
        UserError, match=r"^[0-9]+ of 600 predictions change in ONNX \(largest difference of log-probabilities"
    ) as e:
        run.main()
    assert len(str(e.value).splitlines()) == 1
    assert not exported.MODEL.exists()


def test_a_forged_file_reads_no_other_file_and_is_one_line(there: Path) -> None:
    """If a file and its record are forged, onnxruntime still has no access to other files."""
    Path("weights").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    for location in ("weights", str(there / "weights")):
        tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
        graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
        forged = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        with pytest.raises(UserError, match="^not a network that `make export` wrote: .*External data path") as error:
            Network(forged.SerializeToString())
        assert len(str(error.value).splitlines()) == 1
    for content in (b"", b"no network", exported.MODEL.read_bytes()[:-100]):
        with pytest.raises(UserError, match="^not a network that `make export` wrote: .*; `make export` writes it$"):
            Network(content)


def test_log_probabilities_are_compared() -> None:
    ours = np.array([[-1.0, -2.0], [-3.0, -1.0]], dtype=np.float32)
    same = {"changed_predictions": 0, "log_probability_difference_below": 1e-6}
    assert run.compare_classes(ours, ours) == same
    assert run.compare_classes(ours, ours + np.float32(0.25)) == {**same, "log_probability_difference_below": 1}
    with pytest.raises(UserError, match=r"^2 of 2 predictions change in ONNX \(largest difference .*: 2\)"):
        run.compare_classes(ours, ours[:, ::-1])
    with pytest.raises(UserError, match="^1 of 2 predictions change in ONNX .*: nan"):
        run.compare_classes(ours, ours * np.float32(math.nan))
    assert [run.power_of_ten_above(value) for value in (0.0, 1e-9, 5.7e-6, 2e-4, 1.5)] == [1e-6, 1e-6, 1e-5, 1e-3, 10]


def test_the_comparison_runs_on_the_cpu_whatever_the_device(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, record = exported.MODEL.read_bytes(), exported.RECORD.read_bytes()
    text = Path(paths.PARAMS).read_text(encoding="utf-8")
    before, section, after = text.rpartition("\nevaluate:\n  device: auto ")
    Path(paths.PARAMS).write_text(f"{before}{section.replace('auto', 'mps')}{after}", encoding="utf-8")
    monkeypatch.setattr(run, "convert", lambda *_: content)
    exported.RECORD.unlink()
    run.main()
    assert exported.RECORD.read_bytes() == record


class Bessel(nn.Module):
    """A layer that ONNX has no operator for."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.special.bessel_j0(values.float())
        return found.flatten(1)


class Branch(nn.Module):
    """A layer with data-dependent control flow."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        flat = values.float().flatten(1)
        return flat if flat.sum() > 0 else -flat


@pytest.mark.soak
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Bessel(), "the network cannot be exported to ONNX: ONNX has no operator for prims.bessel_j0; choose"),
        (Branch(), "the network cannot be exported to ONNX: GuardOnDataDependentSymNode: Could not guard on"),
    ],
    ids=["operator", "control flow"],
)
def test_a_network_that_cannot_be_exported_is_one_line(
    layer: nn.Module, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    description = Description(
        format=1, classes=["a", "b"], image_shape=[1, 3, 3], training_mean=0.5, model_sha256="0" * 64
    )
    with warnings.catch_warnings(action="ignore"), pytest.raises(UserError, match=re.escape(expected)) as error:
        convert(layer, description)
    assert len(str(error.value).splitlines()) == 1


def installed(requirements: Path, folder: Path) -> None:
    """Create a folder with links to the packages of a requirements file, and to no others."""
    folder.mkdir()
    for name in re.findall(r"^([a-z0-9_.-]+)==", requirements.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another system: colorama
            continue
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(found.locate_file(top)))


ALONE = """
import runpy, sys
sys.path[:0] = sys.argv[1:3]
del sys.argv[1:3]
runpy.run_module("use.predict", run_name="__main__")
"""


def test_predictions_need_only_the_packages_of_requirements_onnx(there: Path, tmp_path: Path) -> None:
    """Predicts in an isolated interpreter with these packages, without torch and DVC."""
    installed(ROOT / "requirements-onnx.txt", tmp_path / "packages")
    (there / "pictures").mkdir()
    for index, pixels in enumerate(images()[:20]):
        Image.fromarray(pixels[0]).save(f"pictures/{index:02}.png")

    def run_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", "-c", ALONE, str(tmp_path / "packages"), str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    onnx = run_alone("pictures", "--runtime=onnx", "--format=jsonl", "--top=3", "--invert=no")
    assert onnx.returncode == 0, onnx.stderr
    model, spec = model_file.read(paths.MODEL)
    expected = predict(model, images()[:20], "softmax", torch.device("cpu")).exp().numpy()
    rows = [json.loads(line) for line in onnx.stdout.splitlines()]
    assert [row["file"] for row in rows] == [f"pictures/{index:02}.png" for index in range(20)]
    for row, probabilities in zip(rows, expected, strict=True):
        assert [each["class"] for each in row["classes"]] == [spec.classes[at] for at in np.argsort(-probabilities)]
        for each in row["classes"]:
            assert each["probability"] == pytest.approx(probabilities[spec.classes.index(each["class"])], abs=2e-5)
    refused = run_alone("pictures")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "error: PyTorch is not installed; use --runtime onnx" in refused.stderr


# --- the pipeline


PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / exported.PIPELINE).read_text(encoding="utf-8"))["stages"]


def test_the_stage_declares_the_code_that_it_imports_and_no_other() -> None:
    code = {path for path in PIPELINE["export"]["deps"] if path.partition("/")[0] in ("stages", "export")}
    needed = closure("export.run")
    assert [path for path in sorted(needed) if not any(path == e or path.startswith(f"{e}/") for e in code)] == []
    assert [e for e in sorted(code) if not any(path == e or path.startswith(f"{e}/") for path in needed)] == []


def test_a_plain_repro_does_not_run_the_export() -> None:
    main = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert "export" not in main
    assert yaml.safe_load((ROOT / exported.CHOSEN).read_text(encoding="utf-8"))["formats"] in ([], ["onnx"])


@pytest.mark.soak
def test_the_same_bytes_in_another_folder_and_with_other_threads(done: Path, tmp_path: Path) -> None:
    again = workplace(tmp_path / "a folder of another name")
    export(again, MACHINE_THREADS="1", TZ="Asia/Tokyo", PYTHONHASHSEED="7")
    for path in (exported.MODEL, exported.RECORD):
        assert (again / path).read_bytes() == (done / path).read_bytes()
    content = (done / exported.MODEL).read_bytes()
    assert str(ROOT).encode() not in content
    assert b"stages/network" not in content


@pytest.mark.soak
def test_a_full_disk_leaves_the_last_export_as_it_was(there: Path) -> None:
    before = exported.MODEL.read_bytes(), exported.RECORD.read_bytes()
    command = [sys.executable, "-c", FULL_DISK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert re.search(r"^error: data/model/.*: File too large$", done.stderr.splitlines()[-1])
    assert (exported.MODEL.read_bytes(), exported.RECORD.read_bytes()) == before
    assert sorted(path.name for path in exported.MODEL.parent.iterdir()) == ["model.onnx", "model.safetensors"]


FULL_DISK = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # bytes per file
runpy.run_module("export.run", run_name="__main__")
"""


@pytest.fixture
def made(clone: Clone) -> Clone:
    """The pipeline's clone, exported and committed."""
    status, said, errors = inside.module(clone.path, clone.environment, "export")
    assert status == 0, said + errors
    assert "data/model/model.onnx: 10,000 test images, 0 changed predictions, log-probabilities within" in said
    clone.commit("export")
    return clone


@pytest.mark.soak
def test_an_export_is_recorded_and_pushed_and_predicts_in_another_clone(made: Clone, tmp_path: Path) -> None:
    assert "didn't change, skipping" in made.dvc("repro", str(exported.PIPELINE))
    assert "up to date" in made.dvc("status")
    made.dvc("push")
    made.run("git", "clone", "-q", ".", str(tmp_path / "other"))
    other = Clone(tmp_path / "other")
    other.dvc("remote", "modify", "--local", "beside", "url", str(made.path.parent / "dvc-remote"))
    Image.fromarray(np.zeros((28, 28), dtype=np.uint8)).save(other.path / "a.png")
    environment = {**other.environment, "PYTHONPATH": str(ROOT)}
    arguments = ["a.png", "--runtime=onnx", "--format=jsonl"]
    status, said, errors = inside.module(other.path, environment, "use.predict", *arguments, "--model=main")
    assert status == 0, errors
    _, here, _ = inside.module(made.path, made.environment, "use.predict", str(other.path / "a.png"), *arguments[1:])
    assert json.loads(said)["classes"] == json.loads(here)["classes"]
    (made.path / exported.MODEL).unlink()
    made.dvc("checkout")
    assert runtime.read((made.path / exported.MODEL).read_bytes(), "", (made.path / exported.RECORD).read_bytes())
