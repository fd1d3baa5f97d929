"""The pictures: all drawn, the same bytes every time, legible also for extreme values."""

import struct
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

from router import figures
from router.metrics import reliability, risk_coverage, share

SIX = [f"{name}_agent" for name in (
    "international_logistics_and_customs_clearance", "billing", "product_information_and_comparisons",
    "troubleshooting", "human_resources_onboarding", "a",
)]  # fmt: skip
CURVE = pd.DataFrame({"epoch": [1, 2, 3], "training": [2.0, 1.0, 0.4], "validation": [1.9, 1.2, 1.3]})


def result(agents: list[str], correct: int, total: int) -> dict[str, Any]:
    """Every agent right `correct` times in `total`, else mistaken for the next."""
    confusion = {name: dict.fromkeys(agents, 0) for name in agents}
    for place, name in enumerate(agents):
        confusion[name][name] += correct
        confusion[name][agents[(place + 1) % len(agents)]] += total - correct
    part = share([True] * correct + [False] * (total - correct))
    whole = share(([True] * correct + [False] * (total - correct)) * len(agents))
    return whole | {"agents": dict.fromkeys(agents, part), "confusion": confusion, "chance": 1 / len(agents)}


def inputs(agents: list[str], before: int, after: int, total: int) -> tuple[Any, ...]:
    results = {name: result(agents, after, total) for name in figures.NAMES} | {"before": result(agents, before, total)}
    right = {name: [n < hits for n in range(total)] for name, hits in (("before", before), ("after", after))}
    confidence = [1 - n / (2 * total) for n in range(total)]
    reliabilities = {name: reliability(confidence, hits) for name, hits in right.items()}
    return CURVE, results, reliabilities, {name: risk_coverage(confidence, hits) for name, hits in right.items()}


def curve_inputs() -> tuple[dict[int, Any], dict[int, Any]]:
    sizes = (12, 23, 46)
    return {size: share([True] * 5) for size in sizes}, {size: share([False] * 5) for size in sizes}


@pytest.mark.parametrize(("agents", "before", "after"), [(SIX[:3], 8, 19), (SIX, 0, 20), (SIX[:1], 20, 0)])
def test_every_picture_is_drawn_with_the_same_bytes(tmp_path: Path, agents: list[str], before: int, after: int) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = figures.draw_all(tmp_path / name, *inputs(agents, before, after, 20))
        figures.draw_learning_curve(tmp_path / name / "curve.png", *curve_inputs(), 0.5)
        written.append({path.name: path.read_bytes() for path in [*files, tmp_path / name / "curve.png"]})
    assert written[0] == written[1]
    assert set(written[0]) == {f"{name}.png" for name in (
        "loss", "accuracy", "by_agent", "improvement", "confusion_before", "confusion_after", "reliability", "coverage",
        "overview", "curve",
    )}  # fmt: skip
    for content in written[0].values():
        width, height = struct.unpack(">II", content[16:24])
        assert width >= 900, "narrower than a README"
        assert height >= 600
        assert b"Software" not in content
    assert plt.get_fignums() == []


def visible(axes: plt.Axes) -> list[Text]:
    """Every text that is drawn: matplotlib makes tick labels outside the axes too, and leaves them out."""
    parts: list[Text] = [axes.title, axes._left_title, *axes.texts]  # type: ignore[attr-defined]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        parts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    legend = axes.get_legend()
    parts += legend.get_texts() if legend else []
    return [text for text in parts if text.get_text().strip()]


@pytest.mark.parametrize(("before", "after"), [(0, 20), (20, 0), (10, 11), (20, 20)])
@pytest.mark.parametrize("agents", [SIX[:3], SIX])
def test_no_text_lies_on_another_and_none_is_cut(agents: list[str], before: int, after: int) -> None:
    curve, results, _, _ = inputs(agents, before, after, 20)
    pair = results["before"], results["after"]
    drawings = {
        "loss": lambda axes: figures.loss(axes, curve),
        "accuracy": lambda axes: figures.accuracy(axes, results),
        "by agent": lambda axes: figures.by_agent(axes, *pair),
        "improvement": lambda axes: figures.improvement(axes, *pair),
        "learning curve": lambda axes: figures.learning_curve(axes, *curve_inputs(), 0.5),
    }
    with figures.style():
        for name, draw in drawings.items():
            figure, axes = plt.subplots(figsize=figures.SIZE, layout="constrained")
            draw(axes)
            figure.canvas.draw()
            texts = visible(axes)
            boxes = [text.get_window_extent() for text in texts]
            page = figure.bbox
            for i, box in enumerate(boxes):
                inside = box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
                assert inside, f"{name}: {texts[i].get_text()!r} is cut"
                for j in range(i):
                    assert not box.overlaps(boxes[j]), f"{name}: {texts[i].get_text()!r} on {texts[j].get_text()!r}"
            plt.close(figure)
