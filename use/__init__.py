"""Using the model: predict from a command, and serve on a page."""

import stages as stages  # first: prints one line if the pinned packages are missing
