"""Temperature scaling: probabilities that are right as often as they say (Guo et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.network.losses import Output


class Temperature(nn.Module):
    """The last layer of a model file: divide what the probabilities are the softmax of by one number.

    Above 1 it makes predictions less confident, below 1 more. The class of the highest probability stays the same.
    """

    temperature: Tensor

    def __init__(self, temperature: float, output: Output) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))
        self.output = output

    def forward(self, logits: Tensor) -> Tensor:
        """Scaled logits float32 (N, K); their softmax gives the probabilities, whatever the network's output.

        Sigmoids (each class against the rest) are made to add up to 1, p / sum p, which is the softmax of log p. So
        log p is scaled, not the logits: at a low temperature, several sigmoids would be 1, and the order would be lost.
        """
        logits = logits.float()
        return (F.logsigmoid(logits) if self.output == "sigmoid" else logits) / self.temperature
