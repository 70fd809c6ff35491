"""Verifying and repairing results; reading revisions from Git and DVC."""

import stages as stages  # first: exits with one line if pinned packages are missing
