"""The plain loop of the comparisons: training as in PyTorch's tutorial and its examples program.

Nothing here is tuned: torchvision's MNIST, a DataLoader that fetches image by image, the optimizer and the learning
rate of the source.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from stages.common import paths


class Net(nn.Module):
    """The network of pytorch/examples, mnist/main.py: 1.2 M weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalized, to logits (N, 10)."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)  # (N, 9216)
        x = F.relu(self.fc1(x))
        x = self.dropout2(x)
        logits: Tensor = self.fc2(x)
        return logits


def mlp() -> nn.Module:
    """The tutorial's network: 784-512-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))


@contextmanager
def mnist() -> Iterator[Path]:
    """A folder in which torchvision finds the files of the download stage."""
    with tempfile.TemporaryDirectory() as root:
        link = Path(root) / "MNIST" / "raw"
        link.parent.mkdir()
        link.symlink_to(paths.RAW.absolute())
        yield Path(root)


def batches(root: Path, train: bool, mean: float, std: float, batch_size: int) -> DataLoader[Any]:
    """Batches of torchvision's MNIST, fetched image by image."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mean,), (std,))])
    return DataLoader(datasets.MNIST(str(root), train=train, transform=transform), batch_size, shuffle=train)


def epoch(model: nn.Module, images: DataLoader[Any], optimizer: torch.optim.Optimizer) -> float:
    """Train for one epoch; returns the seconds."""
    criterion = nn.CrossEntropyLoss()
    start = time.perf_counter()
    model.train()
    for inputs, labels in images:
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


@torch.no_grad()
def accuracy(model: nn.Module, images: DataLoader[Any]) -> float:
    """Share of images that are classified correctly."""
    model.eval()
    correct = [model(inputs).argmax(dim=1) == labels for inputs, labels in images]
    return torch.cat(correct).double().mean().item()
