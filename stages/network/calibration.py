"""Temperature scaling, which calibrates the probabilities of a classifier (Guo et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.network.losses import Output


class Temperature(nn.Module):
    """The last layer of a model file: divides the logits of the softmax by one number.

    Above 1, it makes predictions less confident; below 1, more confident. The predicted class stays the same.
    """

    temperature: Tensor

    def __init__(self, temperature: float, output: Output) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))
        self.output = output

    def forward(self, logits: Tensor) -> Tensor:
        """Scaled logits float32 (N, K). Their softmax gives the probabilities, for both kinds of outputs.

        Sigmoids p (each class against the rest) are normalized to p / sum p, which is the softmax of log p. So log p is
        scaled, not the logits: at a low temperature, several sigmoids would round to 1, and lose their order.
        """
        logits = logits.float()
        return (F.logsigmoid(logits) if self.output == "sigmoid" else logits) / self.temperature
