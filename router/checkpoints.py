"""Checkpoints that survive being killed: whole or not there, and gone when the work is done."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from router.errors import InputError

MARK = "complete"
"""A file written last into a checkpoint: without it the checkpoint is half-written and never loaded."""


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_complete(folder: Path) -> None:
    """Call when everything is written: the files reach the disk first, then the mark."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            _flush(file)
    (folder / MARK).touch()
    for path in (folder / MARK, folder, folder.parent):
        _flush(path)


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint of `folder` (named `checkpoint-STEP`), or None."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / MARK).exists()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_incomplete(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARK).exists():
            shutil.rmtree(path)


def keep_only(folder: Path, kept: set[Path]) -> None:
    """Remove all other checkpoints, each mark before its files: a half-removed one must not pass as whole."""
    for path in set(folder.glob("checkpoint-*")) - kept:
        (path / MARK).unlink(missing_ok=True)
        _flush(path)
        shutil.rmtree(path)


def wait_for_turn(folder: Path) -> None:
    """Wait until no other process writes checkpoints in `folder`; the turn lasts as long as this process.

    Killing `dvc` leaves the stage that it started running, and two writers would spoil each other's checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # never closed: the lock goes with the process, however it ends
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: another process still trains there; waiting for its end", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Turn a full disk, whichever library met it, into one clear line; the last checkpoint of `folder` stays usable.

    Raises:
        InputError: there is no space left.
    """
    try:
        yield
    except Exception as error:
        # safetensors wraps the system's error and keeps its text; torch.save keeps nothing of it, so look at the disk.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left" not in str(error) and shutil.disk_usage(folder).free > 1 << 20:
            raise
        remove_incomplete(folder)
        last = last_complete(folder)
        kept = f"the last whole checkpoint is {last}" if last else "there is no checkpoint yet"
        raise InputError(
            f"{folder}: no space left on the disk; {kept}; free some space and run the same command again"
        ) from None


def save_state(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights and optimizer state after `step` steps, and remove the checkpoint before.

    Raises:
        InputError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_incomplete(folder)
    with told_when_full(folder):
        new = folder / f"checkpoint-{step}"
        new.mkdir()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, new / "state.pt")
        mark_complete(new)
    keep_only(folder, {new})


def load_state(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Go back to the last whole checkpoint; returns its step, 0 if there is none."""
    last = last_complete(folder)
    if last is None:
        return 0
    state = torch.load(last / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(last.name.rpartition("-")[2])
