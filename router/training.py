"""What fine-tuning adds to TRL's trainer: features, precision, the loss curve, checkpoints that survive a kill."""

import ctypes
import hashlib
import json
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from router.checkpoints import keep_only, last_complete, mark_complete
from router.encoding import Encoder
from router.errors import InputError
from router.examples import DECLINE, Example
from router.functiongemma import END_OF_TURN, START_RESPONSE, Call
from router.params import Params
from router.prefix_sharing import IGNORED, PrefixSharingTrainer, collate_sharing_prefix

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Of glibc's malloc.h."""
PACKED = 16
"""Examples that one packed row may hold where a batch does not ask for more: attention grows with their square."""


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step, where it is glibc; elsewhere do nothing.

    By default it hands large blocks back at once, and the kernel clears them anew page by page: on a CPU that is a
    third of a training step of FunctionGemma's size. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_ARENA_MAX, 1)  # the backward pass runs in a thread of its own, and must share the blocks


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
        message, _ = encoder.message(example.query, max_tokens=sys.maxsize)
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
    """The precision to compute in, fp32, bf16 or fp16, and why. Weights stay in fp32 in every case.

    Raises:
        InputError: fp16 without a GPU.
    """
    if wanted == "fp16" and not torch.cuda.is_available():
        raise InputError("params.yaml: precision: fp16 needs a GPU, and there is none; set auto, fp32 or bf16")
    if wanted != "auto":
        return wanted, "asked for in params.yaml"
    if not torch.cuda.is_available():
        native = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
        return ("bf16", f"the CPU has {native[0]}") if native else ("fp32", "the CPU has no bf16")
    # Not torch.cuda.is_bf16_supported(): it counts emulation, which is slow (T4).
    if torch.cuda.get_device_capability() >= (8, 0):
        return "bf16", f"{torch.cuda.get_device_name()} has it natively"
    return "fp16", f"{torch.cuda.get_device_name()} has no bf16"


def inputs_key(paths: Sequence[Path], parameters: dict[str, Any]) -> str:
    """A name for one set of inputs: another file, parameter or version of this library's code gives another name."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode())
    for path in [*paths, *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


class LossCurve(TrainerCallback):
    """Writes training and validation loss by epoch, while training runs; stops on a loss that is no number."""

    def __init__(self, path: Path, checkpoints: Path) -> None:
        self.path, self.checkpoints = path, checkpoints

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                last = last_complete(self.checkpoints)
                kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
                raise InputError(
                    f"{name} is {logs[name]} at step {state.global_step}; {kept}; lower lr or set precision: fp32"
                )
        if "eval_loss" in logs:
            self._write(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A run that was killed after its last step has nothing to log any more.
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
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


class QuietProgress(ProgressCallback):
    """The progress bar with the loss on it, without a printed line for every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class _Resumable(SFTTrainer):
    """Keeps the best and the last checkpoint, at any moment whole; measures validation loss token by token."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial))
            last = folder / f"checkpoint-{self.state.global_step}"
            mark_complete(last)
            # Not by save_total_limit: it removes the old before the new is on the disk, and may leave half of it.
            keep_only(folder, {last, folder / f"checkpoint-{self.state.best_global_step}"})

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss a token over all validation examples, whatever the batches and however many processes.

        Trainer averages the means of batches, and repeats examples so that every process has as many.
        """
        total = tokens = 0.0
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        dataset: Any = self.eval_dataset
        for batch in DataLoader(dataset, self.args.eval_batch_size, collate_fn=self.data_collator):
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                count = int((inputs["labels"] != IGNORED).sum())
                total += float(self.compute_loss(model, inputs)) * count
            tokens += count
        metrics = {"eval_loss": total / tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for checkpoints: the card is written when the model is published."""


class PlainTrainer(_Resumable):
    """TRL as it is."""


class SharedTrainer(_Resumable, PrefixSharingTrainer):
    """TRL on batches that share their prefix."""


def packed_together(batch_size: int, accumulation: int) -> int:
    """How many of a step's micro-batches go into one packed row: all that fit, and equally many in each."""
    divisors = [n for n in range(1, accumulation + 1) if accumulation % n == 0]
    return max(n for n in divisors if n == 1 or n * batch_size <= PACKED)


def configuration(params: Params, folder: Path, lr: float, precision: str) -> SFTConfig:
    """TRL's arguments for params.yaml; checkpoints go to `folder`."""
    packed = packed_together(params.batch_size, params.gradient_accumulation) if params.train.share_prefix else 1
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=params.epochs,
        # The gradient of packed micro-batches is that of accumulated ones.
        per_device_train_batch_size=params.batch_size * packed,
        gradient_accumulation_steps=params.gradient_accumulation // packed,
        per_device_eval_batch_size=params.batch_size * packed,
        learning_rate=lr,
        optim=params.optimizer,
        weight_decay=params.weight_decay,
        warmup_steps=params.warmup_ratio,  # below 1: a share of all steps
        lr_scheduler_type=params.scheduler,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=False,
        use_cache=True,  # of the saved configuration; training passes its own
        max_length=None,  # features() refuses what is too long; TRL would cut it in silence
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide them from LossCurve
        disable_tqdm=True,  # QuietProgress shows the bar
        report_to="none",
        log_level="error",
        ddp_find_unused_parameters=False,  # there are none; looking for them costs a pass over the graph
        seed=params.seed,
        data_seed=params.seed,
    )
    # Several GPUs are used through `accelerate launch`; DataParallel would multiply the batch without a word.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def make_trainer(
    params: Params,
    model: PreTrainedModel,
    encoder: Encoder,
    arguments: SFTConfig,
    splits: tuple[Sequence[Example], Sequence[Example]],
    curve: Path,
) -> SFTTrainer:
    """The trainer for params.yaml on training and validation examples; writes the loss curve to `curve`.

    Raises:
        InputError: an example is too long.
    """
    train, validation = (Dataset.from_list(features(examples, encoder, params.train.max_length)) for examples in splits)
    lora = None
    if rank := params.train.lora_rank:
        from peft import LoraConfig

        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    set_seed(params.seed)  # LoRA's first weights are random, and TRL makes them before it sets the seed
    shares = params.train.share_prefix
    trainer = (SharedTrainer if shares else PlainTrainer)(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=encoder.tokenizer,
        data_collator=collate_sharing_prefix if shares else None,
        peft_config=lora,
        callbacks=[LossCurve(curve, Path(str(arguments.output_dir))), QuietProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    kept: Any = trainer.train_dataset
    assert len(kept) == len(splits[0]), "rows were dropped"
    return trainer
