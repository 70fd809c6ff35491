"""Stage `train`: train the chosen network on the training part; never reads the test set."""
