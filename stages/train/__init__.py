"""Stage `train`: train the chosen network on the training part; never reads the test set."""

import os

# Read when torch is loaded: torch.distributed reports a lost connection with C++ stack traces, and the stage in a line.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
