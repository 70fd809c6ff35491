"""Check all of params.yaml: `python -m integrity.params`. Reads that file and nothing else, and writes nothing."""

from integrity import rules
from stages.common import errors

if __name__ == "__main__":
    errors.run(rules.read, alone=False)
