"""`dvc plots` without a network: `python -m review.offline_plots`, then `dvc plots show`; or `make plots [REV=main]`.

DVC's pages fetch the Vega scripts from a content delivery network each time they are opened. The package
vl-convert-python contains the same scripts. This program writes them into a template for DVC's plots, and names the
template in .dvc/config.local, which Git ignores. Afterwards plain `dvc plots …` uses it in this clone. Not a stage.
"""

from importlib import import_module
from pathlib import Path

from integrity import revisions
from stages.common import errors, files
from stages.common.errors import UserError

TEMPLATE = "tmp/plots.html"  # in .dvc, where Git and DVC ignore it; each call writes it again
VEGA_LITE = "5.8"  # the version in the package that is nearest to 5.2, which DVC's own page loads

# {plot_divs} is DVC's placeholder. Only the pictures beside the page may be loaded. Vega needs eval for expressions.
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
    """Write the template, and name it in this clone's local configuration."""
    errors.no_arguments()
    page = template()
    with revisions.repository() as repo:
        path = Path(repo.dvc_dir) / TEMPLATE
        files.write_text(path, page)
        with repo.config.edit("local") as settings:
            settings.setdefault("plots", {})["html_template"] = TEMPLATE
        shown = path.relative_to(repo.root_dir)
    print(f"{shown}: {len(page) / 1000:,.0f} kB; `dvc plots show` and `dvc plots diff` use it in this clone")


def template() -> str:
    """The page with all scripts inside. Raises UserError without the package."""
    try:
        vega = import_module("vl_convert")  # a development tool: the stages do not need it
    except ImportError:
        raise UserError(
            "needs the package vl-convert-python, which contains the Vega scripts: `make plots` installs it"
        ) from None
    scripts = str(vega.javascript_bundle(vl_version=VEGA_LITE))
    return PAGE.replace("<SCRIPTS>", scripts.replace("</script", "<\\/script"))


if __name__ == "__main__":
    errors.run_command(main)
