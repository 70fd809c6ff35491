"""Stage `evaluate`: measure the trained model on the test set."""
