"""Load pretrained weights, which were trained for the same classes or for others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.common import paths
from stages.common.errors import UserError
from stages.network import models, torchvision_models
from stages.network.torchvision_models import NETWORK, Network
from stages.network.weights_file import Origin, Weights

KEYS = f"set another models.torchvision.weights or architecture in {paths.PARAMS}"
# Parts of torchvision's networks that are used in training only, and not built here (aux_logits).
NOT_BUILT = ("aux1.", "aux2.", "AuxLogits.")
COUNTER = ".num_batches_tracked"  # of batch norm, which does not need it here; older files lack it


def normalization(origin: Origin, channels: int) -> tuple[list[float], list[float]]:
    """Mean and std that the weights were trained with, one number per channel. Raises UserError if unknown.

    If the number of channels differs from that of the weights, their averages over the channels are repeated.
    """
    if origin.mean is None or origin.std is None:
        raise UserError(
            f"{paths.PARAMS}: preprocess.normalization is weights, and {origin.source} does not state mean and std; "
            "allowed: dataset | half | none"
        )
    mean, std = (
        values if len(values) == channels else [sum(values) / len(values)] * channels
        for values in (origin.mean, origin.std)
    )
    return mean, std


def load(model: nn.Sequential, weights: Weights, architecture: str, classes: Sequence[str]) -> set[str]:
    """Load weights into a network of torchvision. Returns the names of the loaded tensors in its state_dict.

    The last layer stays new, unless it was trained for the same classes in the same order. Raises UserError if the
    weights belong to another network or are not finite.
    """
    network = model[1].get_submodule(NETWORK)
    origin = weights.origin
    if origin.architecture not in (None, architecture):
        raise UserError(f"{origin.source}: the weights are of {origin.architecture}, not of {architecture}; {KEYS}")
    own_head, head = torchvision_models.head(network)
    # In a model that was trained with a dropout before its last layer, that layer is one level deeper.
    given = {name.replace(f"{head}.1.", f"{head}.", 1): tensor for name, tensor in weights.tensors.items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(NOT_BUILT)}
    check_head(given, head, origin)
    if not classes or origin.classes != list(classes):  # regression has no classes, and its labels have another scale
        given = {name: tensor for name, tensor in given.items() if not name.startswith(f"{head}.")}

    own = {name.replace(f"{own_head}.", f"{head}.", 1): name for name in network.state_dict()}  # theirs -> ours
    state = network.state_dict()
    for name, tensor in given.items():
        if name not in own:
            raise UserError(f"{origin.source}: the tensor {name[:100]} is not one of {architecture}; {KEYS}")
        check_tensor(name, tensor, state[own[name]], origin, architecture)
    missing = [
        name for name in own if name not in given and not name.startswith(f"{head}.") and not name.endswith(COUNTER)
    ]
    if missing:
        raise UserError(f"{origin.source}: the tensor {missing[0]} of {architecture} is missing; {KEYS}")
    models.load_weights(network, {**state, **{own[name]: tensor for name, tensor in given.items()}})
    return {f"1.{NETWORK}.{own[name]}" for name in given}


def check_head(tensors: dict[str, Tensor], head: str, origin: Origin) -> None:
    """Raise UserError unless the last layer has one output per class of the file."""
    rows = tensors[f"{head}.weight"].shape[0] if f"{head}.weight" in tensors else None
    if origin.classes and rows not in (None, len(origin.classes)):
        raise UserError(f"{origin.source}: lists {len(origin.classes)} classes, and its last layer has {rows}; {KEYS}")


def check_tensor(name: str, tensor: Tensor, expected: Tensor, origin: Origin, architecture: str) -> None:
    """Raise UserError unless a tensor has the shape and dtype of the expected one, and is finite."""
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        found, wanted = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (tensor, expected))
        remedy = KEYS
        if name.endswith(("pos_embedding", "relative_position_index", "relative_position_bias_table")):
            remedy = f"the weights are for images of another size: set preprocess.image_size to theirs, or {KEYS}"
        raise UserError(f"{origin.source}: the tensor {name} is {found}, and {architecture} has {wanted}; {remedy}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{origin.source}: the tensor {name} holds NaN or infinite weights; {KEYS}")


def freeze(model: nn.Sequential, choice: int | str) -> None:
    """Like `torchvision_models.freeze`, for a model with its normalization. Raises UserError."""
    network = model[1]
    if not isinstance(network, Network):
        raise TypeError("only a network of torchvision can be frozen")
    try:
        torchvision_models.freeze(network, choice)
    except ValueError as error:
        raise UserError(f"{paths.PARAMS}: models.torchvision.{error}") from None
