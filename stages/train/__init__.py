"""Stage `train`: train the chosen network on the training part; never reads the test set."""

import os

# torch reads this when it is imported. torch.distributed would print C++ stack traces for a lost connection.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
