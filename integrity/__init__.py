"""Are these the bytes: verify, doctor, repair, and what Git and DVC hold of a revision."""

import stages as stages  # first: it says in one line if the pinned packages are missing
