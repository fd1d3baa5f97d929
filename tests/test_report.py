"""The report and the table of the README say what the metric files say, and nothing else."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import evaluated
import pytest

from router import report
from router.figures import NAMES
from router.metrics import read_metrics
from router.predictions import read_table

MARKS = re.compile(r"<!-- results -->\n(.*?)\n?<!-- /results -->", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated.compare(evaluated.project(tmp_path_factory.mktemp("report"), {1, 2, 3, 4, 12}, {5, 8}))


def results_of(folder: Path) -> dict[str, Any]:
    baselines = read_metrics(folder / "metrics/baselines.json")
    evaluations = {name: read_metrics(folder / f"metrics/{name}.json") for name in ("before", "after")}
    return evaluations | {name: baselines[name] for name in NAMES if name in baselines}


def files_of(folder: Path) -> tuple[Any, ...]:
    comparison, data = (read_metrics(folder / f"metrics/{name}.json") for name in ("comparison", "data"))
    return results_of(folder), comparison, read_table(folder / "plots/predictions_after.csv"), data


def test_the_report_is_a_function_of_the_files(folder: Path) -> None:
    written = (folder / "metrics/report.md").read_text(encoding="utf-8")
    assert report.report(*files_of(folder)) == written


def numbers(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in numbers(item, (*path, key))]
    return [path] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("path", [
    ("after", "accuracy"), ("after", "accuracy_low"), ("after", "correct"), ("after", "macro_f1"),
    ("after", "call_accuracy"), ("after", "out_of_scope", "auroc"), ("after", "calibration", "ece"),
    ("before", "coverage", "at_80"), ("after", "free", "valid_rate"), ("after", "abstention", "coverage"),
    ("tfidf_characters", "accuracy"), ("majority", "macro_f1"),
])  # fmt: skip
def test_a_changed_number_changes_the_report(folder: Path, path: tuple[str, ...]) -> None:
    results, *others = files_of(folder)
    changed = copy.deepcopy(results)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] += 0.2371
    assert report.report(changed, *others) != report.report(results, *others)


def test_the_table_never_omits_a_baseline(folder: Path) -> None:
    lines = report.result_table(results_of(folder)).splitlines()
    assert [line.split("|")[1].strip().strip("*") for line in lines[2:]] == list(NAMES.values())


def test_mistakes_are_quoted_as_they_were_typed(folder: Path) -> None:
    text = (folder / "metrics/report.md").read_text(encoding="utf-8")
    assert r"message 5 with \*stars\*, a \<tag\> and a \| bar" in text


def test_comparison_counts_the_flips(folder: Path) -> None:
    comparison = read_metrics(folder / "metrics/comparison.json")
    assert (comparison["fixed"], comparison["broken"]) == (5, 2)
    assert comparison["accuracy_gain"] == pytest.approx(3 / 30, abs=1e-4)
    assert comparison["accuracy_gain_low"] <= comparison["accuracy_gain"] <= comparison["accuracy_gain_high"]
    flips = (folder / "plots/flips.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in flips[1:]] == ["broken"] * 2 + ["fixed"] * 5


def test_a_second_run_writes_the_same_bytes(folder: Path) -> None:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    before = {path: path.read_bytes() for path in paths}
    evaluated.compare(folder)
    assert {path: path.read_bytes() for path in paths} == before


def test_the_table_of_the_readme_is_that_of_the_metric_files() -> None:
    readme, root = evaluated.REPOSITORY / "README.md", evaluated.REPOSITORY
    if not readme.exists() or not (root / "metrics/after.json").exists():
        pytest.skip("README.md or metrics/ are not there yet: run `dvc repro`")
    found = MARKS.search(readme.read_text(encoding="utf-8"))
    assert found, "README.md has no <!-- results --> and <!-- /results -->"
    assert found[1].strip() == report.result_table(results_of(root))


def test_metric_files_hold_no_timings(folder: Path) -> None:
    for path in (folder / "metrics").glob("*.json"):
        keys = {key for found in numbers(json.loads(path.read_text())) for key in found}
        assert not {key for key in keys if re.search(r"second|time|duration", key)}
