"""Run a command of .venv, as every target of the Makefile does.

    python3 -I -S tools/run.py requirements.txt integrity.params -- dvc repro

looks for what is in the way, makes or mends .venv, runs `python -m integrity.params`, and then becomes `python -m dvc
repro`: one start of Python besides the commands' own. Exit status: the command's; 2 if something is in the way; 130
for Ctrl-C. -I and -S keep PYTHONHOME and the like from this Python, too.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(arguments: "list[str]") -> int:
    """`[REQUIREMENTS.txt ...] [MODULE ...] -- MODULE [ARGUMENT ...]`. Returns the exit status, if a command fails."""
    sys.path.insert(0, ROOT)
    from tools import venv  # first: it ends in a line if this Python is too old to read environment.py

    if "--" not in arguments[:-1]:
        print(
            "usage: python3 -I -S tools/run.py [REQUIREMENTS.txt ...] [MODULE ...] -- MODULE [ARGUMENT ...]",
            file=sys.stderr,
        )
        return 2
    before, last = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    files = [word for word in before if word.endswith(".txt")]
    steps = [[word] for word in before if not word.endswith(".txt")]
    os.chdir(ROOT)

    from tools import environment

    in_the_way = environment.obstacle(dict(os.environ), ROOT)
    if in_the_way:
        print(f"error: {in_the_way}", file=sys.stderr)
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
