"""Run a command of .venv, as every target of the Makefile does.

    python3 -I -S tools/run.py requirements.txt integrity.params -- dvc repro

checks for obstacles, makes or repairs .venv, runs `python -m integrity.params`, and then becomes `python -m dvc repro`.
Exit status: that of the command; 2 for a problem; 130 for Ctrl-C. -I and -S protect this Python from PYTHONHOME and the
like.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(arguments: "list[str]") -> int:
    """`[REQUIREMENTS.txt ...] [MODULE ...] -- MODULE [ARGUMENT ...]`. Returns the exit status if a command fails."""
    sys.path.insert(0, ROOT)
    from tools import venv  # first: it exits with one line if this Python is too old for environment.py

    if "--" not in arguments[:-1]:
        print(
            "usage: python3 -I -S tools/run.py [REQUIREMENTS.txt ...] [MODULE ...] -- MODULE [ARGUMENT ...]",
            file=sys.stderr,
        )
        return 2
    before, last = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    files = [argument for argument in before if argument.endswith(".txt")]
    steps = [[argument] for argument in before if not argument.endswith(".txt")]
    os.chdir(ROOT)

    from tools import environment

    problem = environment.obstacle(dict(os.environ), ROOT)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    status = venv.run_main(files)
    if status:
        return status
    environ, notes = environment.sane(dict(os.environ), ROOT)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    python = os.path.join(ROOT, venv.PYTHON)
    for step in [*steps, last] if venv.WINDOWS else steps:
        status = os.spawnve(os.P_WAIT, python, [python, "-m", *step], environ)
        if status:
            return status if status > 0 else 128 - status
    if not venv.WINDOWS:
        os.execve(python, [python, "-m", *last], environ)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
