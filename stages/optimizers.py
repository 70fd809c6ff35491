"""Optimizers by name, with plain arguments: torch's own.

fused: one pass over all weights instead of one an operation; torch has it for all but RMSprop.
"""

from collections.abc import Callable, Iterable

from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

Parameters = Iterable[Parameter]


def sgd(parameters: Parameters, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Optimizer:
    """Stochastic gradient descent."""
    return SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True)


def adam(parameters: Parameters, lr: float, beta1: float, beta2: float, weight_decay: float) -> Optimizer:
    """Kingma and Ba 2015; weight decay as an L2 term of the gradient."""
    return Adam(parameters, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)


def adamw(parameters: Parameters, lr: float, beta1: float, beta2: float, weight_decay: float) -> Optimizer:
    """Adam with decoupled weight decay: Loshchilov and Hutter 2019."""
    return AdamW(parameters, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)


def rmsprop(parameters: Parameters, lr: float, alpha: float, momentum: float, weight_decay: float) -> Optimizer:
    """Tieleman and Hinton 2012, lecture 6.5."""
    return RMSprop(parameters, lr=lr, alpha=alpha, momentum=momentum, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": sgd, "adam": adam, "adamw": adamw, "rmsprop": rmsprop}
