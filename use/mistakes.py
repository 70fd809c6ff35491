"""Training images that the network misclassifies, and those among them that are most similar to a given picture.

They show what the network confuses. Similarity is the cosine between the inputs of the network's last layer.
"""

import copy
import threading
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stages.common import paths
from stages.common.errors import UserError
from stages.dataset import data_card, packed
from stages.dataset.packed import Split
from stages.network import torchvision_models
from stages.network.inference import predict
from stages.network.model_file import LAYERS, Spec
from stages.network.models import Normalize
from use.batching import PART
from use.classifier import Classifier
from use.prepare import Pixels

SEARCH_SECONDS = 30  # of processor time; if the search ends after it, it covers a random part of the training images
MAX_MISTAKES = 2000  # the search ends at this number: their features take up to 16 kB each
POOLED = 1  # height and width of a feature map before a last layer that is a convolution


class Mistake(NamedTuple):
    """A training image that the network misclassifies."""

    pixels: Pixels  # (C, H, W)
    label: str
    prediction: str
    probability: float  # of the prediction
    similarity: float  # to the given picture: -1 to 1


class Features:
    """What the last layer of a network receives."""

    def __init__(self, network: nn.Sequential, device: torch.device) -> None:
        self.device = device
        layers = network[:LAYERS]
        shared = {id(tensor): tensor for tensor in (*layers.parameters(), *layers.buffers())}
        self.network = copy.deepcopy(layers, shared)  # a second network with the same weights in memory
        leaves = torchvision_models.leaves(self.network)
        name, layer = leaves[torchvision_models.last_layer(leaves)]
        pool: nn.Module = nn.AdaptiveAvgPool2d(POOLED) if isinstance(layer, nn.Conv2d) else nn.Identity()
        torchvision_models.replace(self.network, name, pool)

    def __call__(self, pixels: Pixels, part_size: int) -> npt.NDArray[np.float32]:
        """Vectors of length 1, float32 (N, F), of pictures (N, C, H, W)."""
        outputs = predict(self.network, torch.from_numpy(pixels), "value", self.device, part_size=part_size)
        return nn.functional.normalize(outputs.flatten(1)).numpy()


class Part(NamedTuple):
    """Misclassified training images, M of them."""

    positions: npt.NDArray[np.int64]  # (M,), in the split
    predictions: npt.NDArray[np.int64]  # (M,), classes
    probabilities: npt.NDArray[np.float32]  # (M,), of the predictions
    features: npt.NDArray[np.float32]  # (M, F), of length 1


class Mistakes:
    """The misclassified training images. While `search` runs in one thread, `nearest` may run in others."""

    def __init__(self, classifier: Classifier) -> None:
        """Raises UserError if data/processed does not have the images that the network was trained on."""
        self.classifier = classifier
        self.images = training_images(classifier.network, classifier.spec)
        self.extract = Features(classifier.network, classifier.device)
        self.parts: list[Part] = []
        self.searched = 0  # images

    def search(self, stop: threading.Event) -> None:
        """Search until all images are covered, a limit is reached, or `stop` is set."""
        start_time = time.thread_time()
        starts = np.arange(0, len(self.images), PART)
        for start in np.random.default_rng(0).permutation(starts):  # a folder's images may be sorted by class
            images, labels = self.images[start : start + PART], self.images.labels[start : start + PART]
            log_p = self.classifier.classify(images, part_size=PART)
            predictions = log_p.argmax(axis=1)
            wrong = np.flatnonzero(predictions != labels)
            if len(wrong):
                probabilities = np.exp(log_p[wrong].max(axis=1))
                part = Part(start + wrong, predictions[wrong], probabilities, self.extract(images[wrong], PART))
                self.parts.append(part)
            self.searched += len(images)
            full = len(self) >= MAX_MISTAKES or time.thread_time() - start_time >= SEARCH_SECONDS
            if full or stop.is_set():
                break

    def __len__(self) -> int:
        return sum(len(part.positions) for part in self.parts)

    def nearest(self, pixels: Pixels, count: int) -> list[Mistake]:
        """The mistakes most similar to a picture (C, H, W), the most similar first."""
        if not self.parts:
            return []
        found = Part(*map(np.concatenate, zip(*self.parts, strict=True)))
        similarities = found.features @ self.extract(np.stack([pixels]), 1)[0]  # (M,)
        order = np.argsort(-similarities, kind="stable")[:count]
        images, classes = self.images.gather(found.positions[order]), self.classifier.spec.classes
        return [
            Mistake(
                image,
                classes[self.images.labels[found.positions[index]]],
                classes[found.predictions[index]],
                float(found.probabilities[index]),
                float(similarities[index]),
            )
            for image, index in zip(images, order, strict=True)
        ]


def training_images(network: nn.Sequential, spec: Spec) -> Split:
    """The images that a network was trained on. Raises UserError if they are missing, or are those of another model.

    The classes, the preparation and the normalization identify them: a network contains all three.
    """
    if not spec.classes:
        raise UserError("the model predicts a number, so no image counts as misclassified")
    card = data_card.read(paths.DATA_CARD)
    same = (card.classes, card.image_shape, card.preparation) == (spec.classes, spec.image_shape, spec.preparation)
    if same and card.normalization is None:  # else the network has the normalization of its pretrained weights
        expected = Normalize(card.mean, card.std)
        moments = ((expected.mean, network.get_buffer("0.mean")), (expected.std, network.get_buffer("0.std")))
        same = all(torch.equal(ours, theirs.cpu()) for ours, theirs in moments)
    if not same:
        raise UserError(f"{paths.PROCESSED} is not the data that this model was trained on")
    return packed.open_split(paths.TRAIN, card.shape, len(card.classes))
