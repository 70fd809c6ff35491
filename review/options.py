"""Command-line options that several commands have."""

import argparse


def level(text: str) -> float:
    """A significance level. Raises ArgumentTypeError."""
    return _number(text, 1e-6, 0.5, "0.000001 to 0.5")


def points(text: str) -> float:
    """A difference of accuracy in percentage points; returns it as a share. Raises ArgumentTypeError."""
    return _number(text, 0.0, 100.0, "0 to 100") / 100


def count(text: str) -> int:
    """A number of seeds. Raises ArgumentTypeError."""
    if not (text.isdecimal() and len(text) < 10 and 2 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 2 to 1,000 seeds")
    return int(text)


def _number(text: str, least: float, most: float, allowed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number from {allowed}")
    return value
