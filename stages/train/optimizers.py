"""Optimizers by name, with plain arguments: torch's own, except for RMSprop.

fused: one pass over all weights, instead of one per operation.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

Parameters = Iterable[Parameter] | Iterable[dict[str, Any]]  # or parameter groups, with their own options


class RmsProp(Optimizer):
    """RMSprop (Tieleman and Hinton 2012, lecture 6.5), with the formula of torch.optim.RMSprop.

    On a CPU, torch.optim.RMSprop uses MKL's square root, whose last bit depends on whether the processor has AVX-512.
    No setting changes that. Division and 1 / sqrt are torch's own, and give the same bits everywhere.
    """

    def __init__(self, parameters: Parameters, lr: float, alpha: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "alpha": alpha, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights from their gradients. closure: ignored."""
        for group in self.param_groups:
            for weight in group["params"]:
                gradient = weight.grad.add(weight, alpha=group["weight_decay"])
                state = self.state[weight]
                if not state:
                    state["square"], state["velocity"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["square"].mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
                root = state["square"].rsqrt().reciprocal_()
                state["velocity"].mul_(group["momentum"]).addcdiv_(gradient, root.add_(1e-8))
                weight.add_(state["velocity"], alpha=-group["lr"])


def groups(model: nn.Module, pretrained: Collection[str], lr: float, lr_factor: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: trained parameters that are new, and pretrained ones with lr * lr_factor.

    pretrained: names of parameters. If lr_factor is 1, there is one group, in the order of the network.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    slow = [parameter for name, parameter in trained if name in pretrained and lr_factor != 1]
    rest = [parameter for name, parameter in trained if name not in pretrained or lr_factor == 1]
    both = [{"params": rest, "lr": lr}, {"params": slow, "lr": lr * lr_factor}]
    return [group for group in both if group["params"]]


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
    return RmsProp(parameters, lr, alpha, momentum, weight_decay)


def state_per_weight(name: str, options: Mapping[str, Any]) -> int:
    """How many numbers an optimizer's state has for each weight."""
    return int(options["momentum"] > 0) if name == "sgd" else 2


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": sgd, "adam": adam, "adamw": adamw, "rmsprop": rmsprop}
