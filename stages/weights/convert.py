"""Turn weights that torchvision publishes, a pickle, into safetensors. A program for a process with nothing to lose.

`python -I convert.py ARCHITECTURE PICKLE OUT MEMORY_BYTES SECONDS` imports nothing of this project. torch reads the
pickle with weights_only, which refuses code; should that fail, the process has limits, and no secrets around it.
"""

import argparse
import pickle
import re
import resource
import sys
from contextlib import suppress
from typing import Any


def set_limits(memory_bytes: int, seconds: int) -> None:
    """Limit what this process may take."""
    limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: memory_bytes}
    for limit, value in {**limits, resource.RLIMIT_CORE: 0}.items():
        with suppress(ValueError, OSError):  # a system that lacks it, or has a lower one
            resource.setrlimit(limit, (value, value))


def convert(architecture: str, source: str, target: str) -> str:
    """Write the weights of an architecture in `source` to `target`; returns why that is impossible, or nothing."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import WeightsEnum, get_model

    torch.set_num_threads(1)
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it names {named[1]}, which no weights need" if named else "it is no file of torch.save, or is damaged"
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return f"it is no file of torch.save, or is damaged ({str(error).partition('. ')[0][:100]})"
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return "it is no state dict: a mapping of names to tensors"

    def get_state_dict(self: Any, *arguments: Any, **options: Any) -> Any:
        """The file that is here, for torchvision, which would fetch it and read it as a pickle."""
        return state

    WeightsEnum.get_state_dict = get_state_dict
    try:
        # torchvision's own function puts them in place: it knows how the names in its older files differ.
        network = get_model(architecture, weights="DEFAULT")
    except (RuntimeError, KeyError, TypeError) as error:
        lines = str(error).splitlines() or [""]
        return f"it does not hold the weights of {architecture}: {lines[min(1, len(lines) - 1)].strip()[:200]}"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, target)
    return ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Turn weights that torchvision publishes into safetensors.")
    for name in ("architecture", "source", "target"):
        parser.add_argument(name)
    for name in ("memory_bytes", "seconds"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    set_limits(given.memory_bytes, given.seconds)
    if problem := convert(given.architecture, given.source, given.target):
        print(problem, file=sys.stderr)
        sys.exit(2)
