"""Turn weights that torchvision publishes, a pickle, into safetensors. A program for a process with nothing to lose.

`python -I convert.py ARCHITECTURE PICKLE OUT MEMORY_BYTES SECONDS` imports nothing of this project. torch reads the
pickle with weights_only, which refuses code; should that fail, the process has limits, and no secrets around it.
"""

import pickle
import re
import resource
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Any


def main(architecture: str, source: str, target: str, memory_bytes: int, seconds: int) -> str:
    """Convert; returns why that is impossible, or nothing."""
    limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: memory_bytes}
    for limit, value in {**limits, resource.RLIMIT_CORE: 0}.items():
        with suppress(ValueError, OSError):  # a system that lacks it, or has a lower one
            resource.setrlimit(limit, (value, value))
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
        return f"it is no file of torch.save, or is damaged ({(str(error).splitlines() or [''])[0][:100]})"
    if not isinstance(state, OrderedDict | dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        return "it is no state dict: a mapping of names to tensors"

    def given(self: Any, *arguments: Any, **options: Any) -> Any:
        """The file that is here, for torchvision, which would fetch it and read it as a pickle."""
        return state

    WeightsEnum.get_state_dict = given
    try:
        # torchvision's own function puts them in place: it knows how the names in its older files differ.
        network = get_model(architecture, weights="DEFAULT")
    except (RuntimeError, KeyError, TypeError) as error:
        lines = str(error).splitlines() or [""]
        return f"it does not hold the weights of {architecture}: {lines[min(1, len(lines) - 1)].strip()[:200]}"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, target)
    return ""


if __name__ == "__main__":
    name, pickled, out, memory, time_limit = sys.argv[1:]
    if problem := main(name, pickled, out, int(memory), int(time_limit)):
        print(problem, file=sys.stderr)
        sys.exit(2)
