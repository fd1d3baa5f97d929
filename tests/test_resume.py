"""Interrupted and distributed training, through the stage itself: `python -m pytest tests/test_resume.py`."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny

from router.checkpoints import MARK


def outputs(folder: Path) -> dict[str, str]:
    """The hash of every file that the stage has written."""
    files = [*sorted((folder / "models/router").iterdir()), folder / "plots/loss.csv"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob(".checkpoints/train-*/checkpoint-*"))


def marked(folder: Path, count: int) -> bool:
    return any(int(path.name.rpartition("-")[2]) >= count for path in checkpoints(folder) if (path / MARK).exists())


def kill_when(folder: Path, reached: Callable[[], bool]) -> None:
    """Start the stage, and kill -9 its whole process group as soon as `reached`."""
    process = tiny.start_training(folder)
    try:
        while not reached():
            assert process.poll() is None, f"ended before it could be killed: {process.stderr.read()}"
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 3}
    (tmp_path / "whole").mkdir()
    whole = tiny.project(tmp_path / "whole", **changes)
    assert "going on from" not in tiny.run_training(whole)
    assert len(pd.read_csv(whole / "plots/loss.csv")) == 3
    assert list((whole / ".checkpoints").iterdir()) == []

    (tmp_path / "killed").mkdir()
    killed = tiny.project(tmp_path / "killed", **changes)
    kill_when(killed, lambda: marked(killed, 2))
    assert not (killed / "models/router").exists()
    (killed / "plots/loss.csv").unlink()  # as DVC does
    half = checkpoints(killed)[0].parent / "checkpoint-99"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half-written")
    assert "going on from .checkpoints/train-" in tiny.run_training(killed)
    assert outputs(killed) == outputs(whole)
    assert list((killed / ".checkpoints").iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    "changes", [{}, {"train": {"share_prefix": False}}, {"train": {"lora_rank": 4}}, {"precision": "bf16"}]
)
def test_training_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Killed at its first checkpoint, inside the writing of the second, inside the rotation, and after the last."""
    (tmp_path / "whole").mkdir()
    whole = tiny.project(tmp_path / "whole", epochs=4, **changes)
    tiny.run_training(whole)
    (tmp_path / "killed").mkdir()
    killed = tiny.project(tmp_path / "killed", epochs=4, **changes)
    kill_when(killed, lambda: marked(killed, 2))
    kill_when(
        killed,
        lambda: any((path / "optimizer.pt").exists() for path in checkpoints(killed) if path.name.endswith("-4")),
    )
    kill_when(
        killed,
        lambda: (
            marked(killed, 6)
            or any(not (path / MARK).exists() for path in checkpoints(killed) if path.name.endswith("-4"))
        ),
    )
    kill_when(killed, lambda: marked(killed, 8))
    assert "going on from" in tiny.run_training(killed)
    assert outputs(killed) == outputs(whole)
    assert list((killed / ".checkpoints").iterdir()) == []


@pytest.mark.long
def test_checkpoints_of_other_parameters_or_data_are_never_used(tmp_path: Path) -> None:
    folder = tiny.project(tmp_path, epochs=3)
    kill_when(folder, lambda: marked(folder, 2))
    parameters = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(parameters.replace("weight_decay: 0.02", "weight_decay: 0.03"))
    kill_when(folder, lambda: len({path.parent for path in checkpoints(folder)}) == 2)
    (folder / "params.yaml").write_text(parameters)
    lines = (folder / "data/train.jsonl").read_text().splitlines(keepends=True)
    (folder / "data/train.jsonl").write_text("".join(lines[1:] + lines[:1]))
    assert "going on from" not in tiny.run_training(folder)
    assert list((folder / ".checkpoints").iterdir()) == []


@pytest.mark.long
def test_a_second_training_waits_for_the_first(tmp_path: Path) -> None:
    """What a killed `dvc` left running must not be disturbed, nor disturb."""
    folder = tiny.project(tmp_path, epochs=3)
    first = tiny.start_training(folder)
    while not marked(folder, 2):
        assert first.poll() is None
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    second = tiny.start_training(folder)
    try:
        assert second.stdout.readline() == ".checkpoints: another process still trains there; waiting for its end\n"
    finally:
        os.kill(first.pid, signal.SIGCONT)
    for process in (first, second):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert list((folder / ".checkpoints").iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("share", [True, False])
def test_two_processes_give_the_loss_curve_of_one_with_twice_the_accumulation(tmp_path: Path, share: bool) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    common = {"epochs": 3, "batch_size": 2, "lr": 3e-6}
    one = tiny.project(tmp_path / "one", **common, gradient_accumulation=6, train={"share_prefix": share})
    two = tiny.project(
        tmp_path / "two", **common, gradient_accumulation=3, train={"share_prefix": share, "processes": 2}
    )
    assert "12 a step" in tiny.run_training(one)
    printed = tiny.run_training(two)
    assert printed.count("12 a step") == 1, "more than one process printed"
    curves = [pd.read_csv(folder / "plots/loss.csv") for folder in (one, two)]
    assert len(curves[0]) == 3
    pd.testing.assert_frame_equal(curves[0], curves[1], rtol=0, atol=1e-4)
    assert list((two / ".checkpoints").iterdir()) == []
    assert (two / "models/router/router.json").exists()
