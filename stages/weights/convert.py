"""Convert weights that torchvision publishes, a pickle, to safetensors. Runs in a process of its own, for safety.

`python -I convert.py ARCHITECTURE PICKLE OUT MEMORY_BYTES SECONDS` imports nothing of this project. torch reads the
pickle with weights_only, which refuses code. If that failed, the process would have limits, and no secrets.
"""

import argparse
import pickle
import re
import resource
import sys
from contextlib import suppress
from typing import Any


def set_limits(memory_bytes: int, seconds: int) -> None:
    """Limit the memory, the CPU time and the file sizes of this process."""
    limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: memory_bytes}
    for limit, value in {**limits, resource.RLIMIT_CORE: 0}.items():
        with suppress(ValueError, OSError):  # not supported, or already lower
            resource.setrlimit(limit, (value, value))


def convert(architecture: str, source: str, target: str) -> str:
    """Write the weights of an architecture from `source` to `target`. Returns an error, or an empty text."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import WeightsEnum, get_model

    torch.set_num_threads(1)
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return (
            f"it names {named[1]}, which weights do not need"
            if named
            else "it is not a file of torch.save, or is damaged"
        )
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return f"it is not a file of torch.save, or is damaged ({str(error).partition('. ')[0][:100]})"
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return "it is not a state dict: a mapping of names to tensors"

    def get_state_dict(self: Any, *arguments: Any, **options: Any) -> Any:
        """Replaces torchvision's method, which would fetch the file and unpickle it."""
        return state

    WeightsEnum.get_state_dict = get_state_dict
    try:
        # torchvision's own function loads them: it knows how the names in its older files differ.
        network = get_model(architecture, weights="DEFAULT")
    except (RuntimeError, KeyError, TypeError) as error:
        lines = str(error).splitlines() or [""]
        return f"it does not contain the weights of {architecture}: {lines[min(1, len(lines) - 1)].strip()[:200]}"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, target)
    return ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Convert weights that torchvision publishes to safetensors.")
    for name in ("architecture", "source", "target"):
        parser.add_argument(name)
    for name in ("memory_bytes", "seconds"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args()
    set_limits(arguments.memory_bytes, arguments.seconds)
    if problem := convert(arguments.architecture, arguments.source, arguments.target):
        print(problem, file=sys.stderr)
        sys.exit(2)
