"""The stage `check`: check all of params.yaml before any other stage runs, since all depend on its output.

Without it, `dvc repro` would find a wrong option of evaluate only after the training.
"""

from integrity import rules
from stages.common import errors, files, inputs, paths


@inputs.unchanged
def main() -> None:
    """params.yaml -> data/params.valid, whose content is constant: a new value reruns only the stages that read it."""
    values = rules.read()
    if rules.pictures_are_missing(values):  # no error: a stage that somebody added may write them
        print(f"warning: data.images is {values['data']['images']}: no such folder or archive", flush=True)
    files.write_text(paths.CHECKED, "params.yaml is valid\n")


if __name__ == "__main__":
    errors.run(main)
