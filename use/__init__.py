"""Using the model: predict from a command, and serve on a page."""
