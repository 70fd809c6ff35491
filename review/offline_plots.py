"""`dvc plots` without a network: `python -m review.offline_plots`, then `dvc plots show`; or `make plots [REV=main]`.

DVC's pages fetch the Vega scripts from a content delivery network each time they are opened. The package
vl-convert-python has the same scripts in it; here they become the template that DVC puts its plots in, and
.dvc/config.local, which Git ignores, names it. From then on plain `dvc plots …` uses it in this clone. Not a stage.
"""

from importlib import import_module
from pathlib import Path

from integrity import revisions
from stages.common import errors, files
from stages.common.errors import UserError

TEMPLATE = "tmp/plots.html"  # in .dvc, where Git and DVC ignore it; made again by the next call
VEGA_LITE = "5.8"  # of those in the package, the nearest to the 5.2 that DVC's own page names

# Placeholders are DVC's. Nothing may be loaded but the pictures beside the page; Vega compiles expressions (eval).
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; \
style-src 'unsafe-inline'; img-src 'self' file: data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Plots</title>
<style>
body { margin: 1.5rem; background: #ffffff; color: #18202b; font-family: system-ui, sans-serif; }
table { border-spacing: 1rem; }
</style>
<script>
<SCRIPTS>
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def main() -> None:
    """Write the template, and name it in this clone's own configuration."""
    page = template()
    with revisions.repository() as repo:
        path = Path(repo.dvc_dir) / TEMPLATE
        files.write_text(path, page)
        with repo.config.edit("local") as settings:
            settings.setdefault("plots", {})["html_template"] = TEMPLATE
        shown = path.relative_to(repo.root_dir)
    print(f"{shown}: {len(page) / 1000:,.0f} kB; `dvc plots show` and `dvc plots diff` use it in this clone")


def template() -> str:
    """The page with all scripts in it. Raises UserError without the package."""
    try:
        vega = import_module("vl_convert")  # a tool of the people who work here: the stages do without
    except ImportError:
        raise UserError(
            "needs the package vl-convert-python, which has the Vega scripts in it: `make plots` installs it"
        ) from None
    scripts = str(vega.javascript_bundle(vl_version=VEGA_LITE))
    return PAGE.replace("<SCRIPTS>", scripts.replace("</script", "<\\/script"))


if __name__ == "__main__":
    errors.run_command(main)
