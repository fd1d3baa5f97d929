"""`dvc plots show` draws every plot of dvc.yaml in a browser that has no network."""

import re
import shutil
import subprocess
from pathlib import Path

import evaluated
import pytest
from ruamel.yaml import YAML

from router.plots_page import SCRIPT, write_script

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--proxy-server=127.0.0.1:9", "--virtual-time-budget=10000",
]  # fmt: skip
"""The proxy is a port where nothing listens: the network is cut."""
WARNING = "<strong>The plots are not drawn"
PROBE = """<script>
const embed = window.vegaEmbed;
window.vegaEmbed = (id, spec) => embed(id, spec, {renderer: "svg"}).then(() => {
  const marks = [...document.querySelectorAll(`${id} .role-mark path`)].filter((path) => path.getAttribute("d"));
  document.documentElement.insertAdjacentHTML("beforeend", `<pre class="drawn">${id} ${marks.length}</pre>`);
});
</script></head>"""
"""Lets Vega draw SVG instead of a bitmap, and notes how many marks each plot has: bars, points, lines, cells."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository that has this project's plots and its page."""
    folder = evaluated.project(tmp_path_factory.mktemp("plots"), {1, 2, 3, 4, 5, 6, 12}, {5, 8, 10})
    evaluated.compare(folder)
    definitions = YAML(typ="safe").load(evaluated.REPOSITORY / "dvc.yaml")["plots"]
    YAML().dump({"plots": definitions}, folder / "dvc.yaml")
    evaluated.git(folder, "init")
    evaluated.run(folder, "-m", "dvc", "init", "--quiet")
    for name in ("config", "plots.html"):
        shutil.copy(evaluated.REPOSITORY / ".dvc" / name, folder / ".dvc")
    evaluated.git(folder, "add", ".")
    evaluated.git(folder, "commit", "-m", "all")
    return folder


def titles(folder: Path) -> list[str]:
    return [next(iter(plot)) for plot in YAML(typ="safe").load(folder / "dvc.yaml")["plots"] if isinstance(plot, dict)]


def opened(folder: Path, page: Path) -> str:
    """The page's elements as the browser has them once everything has run."""
    assert CHROMIUM is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *QUIET, profile, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=300
    )
    return done.stdout


def shown(folder: Path) -> Path:
    """The page of `dvc plots show`."""
    evaluated.run(folder, "-m", "dvc", "plots", "show")
    return folder / "dvc_plots" / "index.html"


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page (apt-get install chromium)")


@needs_chromium
def test_every_plot_draws_marks_without_internet(repository: Path) -> None:
    page = shown(repository)
    write_script(repository / SCRIPT)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</head>", PROBE, 1), encoding="utf-8")
    drawn = opened(repository, page)
    marks = {name: int(count) for name, count in re.findall(r'<pre class="drawn">#(\S+) (\d+)</pre>', drawn)}
    expected = {re.sub(r"\W", "_", title) for title in titles(repository)}
    assert marks.keys() == expected
    assert [name for name, count in marks.items() if count == 0] == []
    assert WARNING not in drawn


@needs_chromium
def test_a_missing_script_is_told_on_the_page(repository: Path) -> None:
    page = shown(repository)
    (repository / SCRIPT).unlink(missing_ok=True)
    assert WARNING in opened(repository, page)


def test_the_page_needs_only_files_beside_it(repository: Path) -> None:
    """Everything that it loads before it knows whether the script is there is beside it."""
    text = re.sub(r"<template.*?</template>", "", shown(repository).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!static/)([^"]+)"', text) == ["vega.js"]
