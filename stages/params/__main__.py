"""Check the whole of params.yaml: `python -m stages.params`. Reads that file and nothing else, and writes nothing."""

from stages import errors
from stages.params import whole

if __name__ == "__main__":
    errors.run(whole.read, alone=False)
