"""Judging results: compare, report, sweep, pull_request."""

import stages as stages  # first: it says in one line if the pinned packages are missing
