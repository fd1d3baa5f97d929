"""The script that draws the page of `dvc plots show` without internet (the page itself is .dvc/plots.html).

python -m router.plots_page
"""

from pathlib import Path

import vl_convert

SCRIPT = Path("dvc_plots/vega.js")
"""Beside the page, so that the folder can be moved or sent as a whole."""


def write_script(path: Path) -> None:
    """Write Vega, Vega-Lite and vega-embed as one script that sets `window.vegaEmbed`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # all arguments may be left out
    # In a function: its short top-level names would clash with those of other scripts on the page.
    path.write_text(f"(() => {{{bundle}\n}})();\n", encoding="utf-8")


if __name__ == "__main__":
    write_script(SCRIPT)
