"""Using the model: predict from a command, and serve on a page."""

import stages as stages  # first: it says in one line if the pinned packages are missing
