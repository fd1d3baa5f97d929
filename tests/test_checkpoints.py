"""Checkpoints are whole or not there: `python -m pytest tests/test_checkpoints.py`."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import SafetensorError

import router.checkpoints
from router.checkpoints import (
    MARK,
    keep_only,
    last_complete,
    load_state,
    mark_complete,
    remove_incomplete,
    save_state,
    told_when_full,
)
from router.errors import InputError
from router.training import configuration, inputs_key, make_trainer


def checkpoint(folder: Path, step: int, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text("0123456789")
    if whole:
        mark_complete(path)
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "nowhere") is None
    checkpoint(tmp_path, 8)
    wanted = checkpoint(tmp_path, 16)
    half = checkpoint(tmp_path, 100, whole=False)
    assert last_complete(tmp_path) == wanted
    remove_incomplete(tmp_path)
    assert not half.exists()
    assert last_complete(tmp_path) == wanted


def test_a_removal_that_is_cut_short_leaves_nothing_that_passes_as_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        keep_only(tmp_path, {new})
    assert old.exists()
    assert [path for path in (old, new) if (path / MARK).exists()] == [new]


def test_a_key_changes_with_every_parameter_and_every_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("one")
    second.write_text("two")
    keys = {inputs_key([first, second], {"lr": 1e-5, "train": {"lora_rank": 0}})}
    assert keys == {inputs_key([first, second], {"train": {"lora_rank": 0}, "lr": 1e-5})}, "not the same in every run"
    keys.add(inputs_key([first, second], {"lr": 2e-5, "train": {"lora_rank": 0}}))
    keys.add(inputs_key([first, second], {"lr": 1e-5, "train": {"lora_rank": 8}}))
    second.write_text("twx")
    keys.add(inputs_key([first, second], {"lr": 1e-5, "train": {"lora_rank": 0}}))
    assert len(keys) == 4


def test_a_state_is_read_back_and_a_half_written_one_is_not(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    assert load_state(tmp_path, model, optimizer) == 0
    save_state(tmp_path, model, optimizer, 10)
    kept = model.weight.detach().clone()
    torch.nn.init.zeros_(model.weight)
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "state.pt").write_bytes(b"half")
    assert load_state(tmp_path, model, optimizer) == 10
    assert torch.equal(model.weight, kept)
    save_state(tmp_path, model, optimizer, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


# --- full disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes; skips where that is not permitted."""
    disk = tmp_path / "disk"

    def mount(size: int) -> Path:
        disk.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True
        ).returncode:
            pytest.skip("mounting is not permitted")
        return disk

    yield mount
    subprocess.run(["umount", "--lazy", disk], capture_output=True)


def train(folder: Path, curve: Path) -> None:
    params = tiny.params(epochs=4)
    splits = tiny.examples(12), tiny.examples(16)[12:]
    arguments = configuration(params, folder, params.lr, "fp32")
    trainer = make_trainer(params, tiny.model(), tiny.encoder(), arguments, splits, curve)
    with told_when_full(folder):
        trainer.train()


def assert_usable(path: Path) -> None:
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", MARK} <= {
        file.name for file in path.iterdir()
    }
    assert torch.load(path / "optimizer.pt", weights_only=True)["state"]


@pytest.mark.parametrize("writer", ["safetensors", "torch.save"])
def test_a_full_disk_is_one_clear_line_and_leaves_the_last_checkpoint(
    tmp_path: Path, small_disk: Callable[[int], Path], writer: str
) -> None:
    train(tmp_path / "free", tmp_path / "loss.csv")
    (one, *_) = (tmp_path / "free").iterdir()
    sizes = {file.name: -(-file.stat().st_size // 4096) * 4096 for file in one.iterdir()}
    room = {"safetensors": sizes["model.safetensors"] // 2, "torch.save": sizes["model.safetensors"] * 2}[writer]
    disk = small_disk(sum(sizes.values()) + room)  # one checkpoint fits, and half of the next does
    with pytest.raises(InputError) as told:
        train(disk / "run", tmp_path / "loss.csv")
    last = disk / "run" / "checkpoint-1"
    assert str(told.value) == (
        f"{disk / 'run'}: no space left on the disk; the last whole checkpoint is {last}; "
        "free some space and run the same command again"
    )
    assert_usable(last)
    assert not (disk / "run" / "checkpoint-2").exists()


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1 << 40),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1 << 40),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 1 << 40),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), 0),  # torch.save
    ],
)
def test_a_full_disk_is_recognised_in_every_library_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(router.checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=free))
    last, half = checkpoint(tmp_path, 3), checkpoint(tmp_path, 4, whole=False)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    model = torch.nn.Linear(3, 3)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=f"no space left on the disk; the last whole checkpoint is {last};"):
        save_state(tmp_path, model, torch.optim.AdamW(model.parameters()), 5)
    assert last.exists()
    assert not half.exists()
    assert not (tmp_path / "checkpoint-5").exists()


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), told_when_full(tmp_path):
        raise RuntimeError("something else")
