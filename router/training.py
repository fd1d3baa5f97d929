"""What fine-tuning adds to TRL's trainer: features, precision, the loss curve, checkpoints that survive being killed."""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from trl import SFTTrainer

from router.checkpoints import last_complete, mark_complete, told_when_full
from router.encoding import Encoder
from router.errors import InputError
from router.examples import DECLINE, Example
from router.functiongemma import END_OF_TURN, START_RESPONSE, Call
from router.prefix_sharing import IGNORED, PrefixSharingTrainer


def features(examples: Sequence[Example], encoder: Encoder, max_length: int) -> list[dict[str, Any]]:
    """Examples as token ids with labels on the answer only.

    Built from token ids, not through a table of dictionaries: Arrow would fill missing arguments with nulls.

    Returns:
        for each example input_ids and labels (tokens) and prefix_length

    Raises:
        InputError: an example is longer than `max_length`; nothing is ever cut.
    """
    rows = []
    for example in examples:
        message, _ = encoder.message(example.query, max_length)
        prompt = [*encoder.prefix, *message, *encoder.turn]
        if example.agent is None:
            answer = encoder.decline(DECLINE)
        else:
            answer = encoder.call(Call(example.agent, dict(example.arguments)))
        assert answer[-1] in (encoder.control[START_RESPONSE], encoder.control[END_OF_TURN]), example
        if len(prompt) + len(answer) > max_length:
            raise InputError(
                f"params.yaml: train.max_length: {example.query[:60]!r} needs {len(prompt) + len(answer)} tokens, more "
                f"than {max_length}; raise it or shorten the query"
            )
        labels = [IGNORED] * len(prompt) + answer
        rows.append({"input_ids": prompt + answer, "labels": labels, "prefix_length": len(encoder.prefix)})
    return rows


def choose_precision(wanted: str) -> tuple[str, str]:
    """The precision to compute in, fp32, bf16 or fp16, and why. Weights stay in fp32 in every case."""
    if wanted != "auto":
        return wanted, "asked for in params.yaml"
    if not torch.cuda.is_available():
        return "fp32", "no GPU"
    # Not torch.cuda.is_bf16_supported(): it counts emulation, which is slow (T4).
    if torch.cuda.get_device_capability() >= (8, 0):
        return "bf16", f"{torch.cuda.get_device_name()} has it natively"
    return "fp16", f"{torch.cuda.get_device_name()} has no bf16"


def inputs_key(paths: Sequence[Path], parameters: dict[str, Any]) -> str:
    """A name for one set of inputs: another file or parameter gives another name."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode())
    for path in paths:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


class LossCurve(TrainerCallback):  # type: ignore[misc]
    """Writes training and validation loss by epoch, while training runs; stops on a loss that is no number."""

    def __init__(self, path: Path, checkpoints: Path) -> None:
        self.path, self.checkpoints = path, checkpoints

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                last = last_complete(self.checkpoints)
                kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
                raise InputError(
                    f"{name} is {logs[name]} at step {state.global_step}; {kept}; lower lr or set precision: fp32"
                )
        if state.is_world_process_zero and "eval_loss" in logs:
            loss_table(state.log_history).to_csv(self.path, index=False, lineterminator="\n")


def loss_table(log_history: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Mean training loss and validation loss of each epoch, in nats a token of the answer."""
    training: dict[int, list[float]] = {}
    validation: dict[int, float] = {}
    for logs in log_history:
        if "loss" in logs:
            training.setdefault(math.ceil(round(logs["epoch"], 6)), []).append(logs["loss"])
        if "eval_loss" in logs:
            validation[round(logs["epoch"])] = logs["eval_loss"]
    epochs = sorted(training.keys() & validation.keys())
    return pd.DataFrame(
        {
            "epoch": epochs,
            "training": [round(sum(training[epoch]) / len(training[epoch]), 5) for epoch in epochs],
            "validation": [round(validation[epoch], 5) for epoch in epochs],
        }
    )


class QuietProgress(ProgressCallback):  # type: ignore[misc]
    """The progress bar with the loss on it, without a printed line for every step."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class _Resumable(SFTTrainer):  # type: ignore[misc]
    """Marks checkpoints that are whole, and tells in one line when the disk is full."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        with told_when_full(folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(folder / f"checkpoint-{self.state.global_step}")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for checkpoints: the card is written when the model is published."""


class PlainTrainer(_Resumable):
    """TRL as it is."""


class SharedTrainer(_Resumable, PrefixSharingTrainer):
    """TRL on batches that share their prefix."""


def remove_others(root: Path, current: Path) -> None:
    """Remove checkpoints of other inputs: nothing will ever go on from them."""
    if root.exists():
        for folder in root.iterdir():
            if folder != current and folder.name.startswith("train-"):
                shutil.rmtree(folder)
