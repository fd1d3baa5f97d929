"""Scoring against values computed by hand or found in the literature."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from router import metrics
from router.errors import InputError
from router.scoring import score


def calls(*rows: tuple[str, dict[str, str]]) -> list[dict[str, str]]:
    return [{"agent": agent, "arguments": json.dumps(arguments)} for agent, arguments in rows]


REFERENCES = calls(
    ("a", {"x": "1", "y": "1"}), ("a", {"x": "1", "y": "2"}), ("a", {"x": "2", "y": "1"}), ("b", {"z": "1"})
)  # fmt: skip
PREDICTIONS = calls(
    ("a", {"y": "1", "x": "1"}), ("a", {"x": "1", "y": "1"}), ("b", {"z": "1"}), ("b", {"z": "1"})
)  # fmt: skip


def test_wilson_gives_the_interval_of_19_in_23() -> None:
    p, n, z = 19 / 23, 23, 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert metrics.wilson(19, 23) == pytest.approx((centre - half, centre + half), abs=1e-6)


@pytest.mark.parametrize("total", [1, 5, 1000])
def test_wilson_stays_inside_and_is_symmetric(total: int) -> None:
    low, high = metrics.wilson(0, total)
    assert low == pytest.approx(0, abs=1e-12)
    assert 0 < high < 1
    assert metrics.wilson(total, total) == pytest.approx((1 - high, 1 - low))
    assert metrics.wilson(0, 0) == (0.0, 1.0)


def test_calls_are_scored_by_agent_argument_and_whole() -> None:
    result = score(PREDICTIONS, REFERENCES)
    assert (result["accuracy"], result["correct"], result["total"]) == (0.75, 3, 4)
    assert result["call_accuracy"] == 0.5
    assert (result["chance"], result["majority"]) == (0.5, 0.75)
    a, b = result["agents"]["a"], result["agents"]["b"]
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((1, 2 / 3, 0.8))
    assert (b["precision"], b["recall"], b["f1"]) == pytest.approx((0.5, 1, 2 / 3))
    assert result["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    # The third query's arguments are wrong because its agent is; the second's y is wrong by itself.
    assert result["parameters"]["a"]["x"]["correct"] == 2
    assert result["parameters"]["a"]["y"]["correct"] == 1
    assert result["parameters"]["b"]["z"]["accuracy"] == 1
    assert result["confusion"] == {"a": {"a": 2, "b": 1}, "b": {"a": 0, "b": 1}}


def test_an_agent_without_test_queries_still_shows_in_the_confusion() -> None:
    result = score(calls(("c", {}), ("b", {"z": "1"})), calls(("a", {"x": "1"}), ("b", {"z": "1"})))
    assert result["confusion"] == {"a": {"a": 0, "b": 0, "c": 1}, "b": {"a": 0, "b": 1, "c": 0}}
    assert list(result["agents"]) == ["a", "b"]


def test_scoring_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "metrics")
    score(PREDICTIONS, REFERENCES)
    assert list(tmp_path.rglob("*")) == []


def test_calibration() -> None:
    # Bins [0.6, 0.7): confidence 0.65, accuracy 0.5; [0.9, 1]: 0.95 and 1. Weighted gaps: (0.15 * 2 + 0.05 * 2) / 4.
    result = metrics.calibration([0.62, 0.68, 0.9, 1.0], [True, False, True, True])
    assert result["ece"] == pytest.approx(0.1)
    assert result["brier"] == pytest.approx((0.38**2 + 0.68**2 + 0.1**2) / 4)
    assert metrics.calibration([1.0, 1.0], [True, True]) == {"ece": 0, "brier": 0}


def test_risk_coverage_answers_the_surest_first() -> None:
    scores, correct = [0.1, 0.9, 0.8, 0.3, 0.7], [False, True, True, True, False]
    curve = metrics.risk_coverage(scores, correct)
    assert curve["coverage"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve["accuracy"].tolist() == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5])
    shares = metrics.at_coverages(scores, correct)  # 50 % of five is answered by three
    assert shares == pytest.approx({"at_50": 2 / 3, "at_80": 3 / 4, "at_90": 3 / 5, "at_100": 3 / 5})


def test_out_of_scope_is_the_share_of_pairs_in_order() -> None:
    assert metrics.out_of_scope([0.9, 0.5], [0.4, 0.6]) == 3 / 4
    assert metrics.out_of_scope([0.5], [0.5]) == 1 / 2


def test_the_threshold_is_the_lowest_that_reaches_the_precision() -> None:
    scores, correct = [0.9, 0.8, 0.7, 0.6], [True, False, True, True]
    assert metrics.choose_threshold(scores, correct, 0.75) == 0.6
    assert metrics.choose_threshold(scores, correct, 0.9) == 0.9
    assert metrics.choose_threshold(scores, [False] * 4, 0.9) == 0.9


def test_slices_count_a_query_under_each_of_its_tags() -> None:
    result = metrics.slices([("long", "typo"), ("long",), ()], [True, False, True])
    assert {tag: (part["correct"], part["total"]) for tag, part in result.items()} == {"long": (1, 2), "typo": (1, 1)}


def test_mcnemar_is_the_sign_test_of_the_changed_queries() -> None:
    before, after = [False] * 6 + [True] * 5, [True] * 5 + [False] * 2 + [True] * 4
    # Five fixed, one broken: 2 * (1 + 6) / 2**6.
    assert metrics.mcnemar(before, after) == pytest.approx(2 * 7 / 64)
    assert metrics.mcnemar(before, before) == 1


def test_the_gain_interval_is_seeded_and_covers_the_gain() -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.random(80) < 0.5).tolist(), (rng.random(80) < 0.8).tolist()
    low, high = metrics.gain_interval(before, after, seed=1, samples=2000)
    assert (low, high) == metrics.gain_interval(before, after, seed=1, samples=2000)
    assert low < np.mean(after) - np.mean(before) < high
    # The normal approximation of the same interval.
    half = 1.96 * np.std(np.array(after, float) - np.array(before, float)) / math.sqrt(80)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert metrics.gain_interval([True] * 9, [True] * 9, seed=1, samples=50) == (0, 0)


def test_small_p_values_are_not_told_as_zero() -> None:
    assert metrics.p_value(0.0) == "McNemar p < 0.0001"
    assert metrics.p_value(0.0312) == "McNemar p = 0.0312"


def test_metric_files_are_rounded_sorted_and_stable(tmp_path: Path) -> None:
    values = {"b": 1 / 3, "a": {"z": [0.1 + 0.2, True], "é": 7}}
    for name in ("one", "two"):
        metrics.write_metrics(values, tmp_path / name / "m.json")
    text = (tmp_path / "one/m.json").read_text(encoding="utf-8")
    assert text == (tmp_path / "two/m.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["a", "b"]
    assert json.loads(text) == {"a": {"z": [0.3, True], "é": 7}, "b": 0.3333}
    assert "é" in text
    assert text.endswith("}\n")


def test_a_missing_or_broken_metric_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json.*dvc repro"):
        metrics.read_metrics(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"bad\.json:1"):
        metrics.read_metrics(tmp_path / "bad.json")
