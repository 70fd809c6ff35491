"""Start training from pretrained weights, some of which may stay frozen."""

from typing import Any

from torch import nn

from stages.common import paths
from stages.common.errors import UserError
from stages.dataset.data_card import DataCard
from stages.network import pretrained, weights_file
from stages.network.weights_file import Weights
from stages.train import optimizers
from stages.train.options import Config


def read_weights(config: Config) -> Weights | None:
    """The pretrained weights that params.yaml chooses; None: new weights. Raises UserError if the file is stale."""
    if not config.starts_pretrained:
        return None
    weights = weights_file.read(paths.PRETRAINED)
    if weights is None:  # the stages were run by hand
        raise UserError(f"{paths.PRETRAINED}: made for other parameters; `dvc repro` rebuilds it")
    return weights


def normalization(card: DataCard, weights: Weights | None) -> tuple[list[float], list[float]]:
    """Mean and std of the first layer, one number per channel. Raises UserError if pretrained weights lack them."""
    if card.normalization != "weights":
        return card.mean, card.std
    if weights is None:
        raise UserError(
            f"{paths.PARAMS}: preprocess.normalization is weights, and training starts with new weights; allowed: "
            "dataset | half | none"
        )
    return pretrained.normalization(weights.origin, card.shape[0])


def fine_tune(
    model: nn.Sequential, weights: Weights | None, config: Config, classes: list[str]
) -> list[dict[str, Any]]:
    """Put the pretrained weights into the network, and freeze parts of it. Returns the parameter groups to train.

    weights: as `read_weights` gives them. Raises UserError if they do not fit.
    """
    lr, tuning = config.optimizer_options["lr"], config.fine_tuning
    if tuning is None or weights is None:
        return optimizers.groups(model, (), lr, 1)
    names = pretrained.load(model, weights, config.model_options["architecture"], classes)
    pretrained.freeze(model, tuning.freeze)
    print(f"{len(names)} of {len(model[1].state_dict())} tensors are of {weights.origin.source}", flush=True)
    return optimizers.groups(model, names, lr, tuning.lr_factor)
