"""Fine-tune the base model into the router with TRL's SFTTrainer.

    python stages/train.py

Reads models/base, data/{train,validation}.jsonl; writes models/router and plots/loss.csv.
Interrupted, it goes on from its last checkpoint and ends with the same weights.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig

from router.agents import load_agents
from router.checkpoints import last_complete
from router.encoding import Encoder
from router.errors import run
from router.examples import read_conversations
from router.metrics import choose_threshold
from router.params import Params, load_params
from router.prefix_sharing import collate_sharing_prefix
from router.router import Router, Settings, load_checkpoint, save_settings
from router.training import (
    LossCurve,
    PlainTrainer,
    QuietProgress,
    SharedTrainer,
    choose_precision,
    features,
    inputs_key,
    remove_others,
)

BASE = Path("models/base")
OUTPUT = Path("models/router")
TRAIN, VALIDATION = Path("data/train.jsonl"), Path("data/validation.jsonl")
CURVE = Path("plots/loss.csv")
CHECKPOINTS = Path(".checkpoints")


def configuration(params: Params, folder: Path, lr: float) -> SFTConfig:
    precision, reason = choose_precision(params.precision)
    step = params.batch_size * params.gradient_accumulation
    state = PartialState()
    if state.is_main_process:
        print(f"learning rate {lr:.3g}, {precision} ({reason}), {step * state.num_processes} examples a step")
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=params.epochs,
        # One packed row holds a whole step's examples: the gradients are those of the accumulated batches.
        per_device_train_batch_size=step if params.train.share_prefix else params.batch_size,
        gradient_accumulation_steps=1 if params.train.share_prefix else params.gradient_accumulation,
        per_device_eval_batch_size=64 if params.train.share_prefix else params.batch_size,
        learning_rate=lr,
        optim=params.optimizer,
        weight_decay=params.weight_decay,
        warmup_steps=params.warmup_ratio,  # below 1: a share of all steps
        lr_scheduler_type=params.scheduler,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        max_length=None,  # features() refuses what is too long; TRL would cut it in silence
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the best and the last
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide them from LossCurve
        report_to="none",
        seed=params.seed,
        data_seed=params.seed,
    )


def fine_tune(params: Params, folder: Path) -> None:
    """Train, and write the best checkpoint's weights to models/router."""
    agents = load_agents(params.agents)
    model, tokenizer = load_checkpoint(str(BASE), torch.float32)
    encoder = Encoder(tokenizer, agents, params.router.system)
    rows = [features(read_conversations(path), encoder, params.train.max_length) for path in (TRAIN, VALIDATION)]
    shares = params.train.share_prefix
    if not shares:
        rows = [[{name: row[name] for name in ("input_ids", "labels")} for row in split] for split in rows]
    train, validation = (Dataset.from_list(split) for split in rows)
    lora = None
    if params.train.lora_rank:
        from peft import LoraConfig

        rank = params.train.lora_rank
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = (SharedTrainer if shares else PlainTrainer)(
        model=model,
        args=configuration(params, folder, params.lr * getattr(model.config, "lr_scale", 1.0)),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=collate_sharing_prefix if shares else None,
        peft_config=lora,
        callbacks=[LossCurve(CURVE, folder), QuietProgress()],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    assert len(trainer.train_dataset) == len(rows[0]), "rows were dropped"
    checkpoint = last_complete(folder)
    if checkpoint and trainer.is_world_process_zero():
        print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        best = min(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
        print(f"best validation loss {best:.4f} at step {trainer.state.best_global_step}")
        trained = trainer.accelerator.unwrap_model(trainer.model)
        trained = trained.merge_and_unload() if lora else trained
        settings = Settings(params.router.system, params.router.max_query_tokens)
        shutil.rmtree(OUTPUT, ignore_errors=True)
        Router(trained, tokenizer, agents, settings).save_pretrained(OUTPUT)


def store_threshold(params: Params) -> None:
    """Choose the threshold for abstaining on the validation split, and store it with the model."""
    router = Router.from_pretrained(OUTPUT)
    examples = read_conversations(VALIDATION)
    routes = list(router.route_many(example.query for example in examples))
    correct = [route.agent == example.agent for route, example in zip(routes, examples, strict=True)]
    threshold = choose_threshold([route.score for route in routes], correct, params.router.target_precision)
    save_settings(replace(router.settings, threshold=round(threshold, 6)), OUTPUT)
    print(
        f"abstains below {threshold:.3f}: precision {params.router.target_precision} on {len(examples)} validation messages"
    )


def main() -> None:
    params = load_params()
    launched = "LOCAL_RANK" in os.environ
    if not launched and (params.train.processes > 1 or params.train.accelerate_config):
        chosen = ["--num_processes", str(params.train.processes)]
        if params.train.accelerate_config:
            chosen = ["--config_file", params.train.accelerate_config]
        if not torch.cuda.is_available():
            chosen.append("--cpu")
        sys.exit(subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *chosen, __file__]).returncode)
    relevant = params.model_dump(exclude={"data", "embedded", "hub", "revision", "base"})
    inputs = [Path(params.agents), TRAIN, VALIDATION, *sorted(file for file in BASE.iterdir() if file.is_file())]
    folder = CHECKPOINTS / f"train-{inputs_key(inputs, relevant)}"
    CURVE.parent.mkdir(exist_ok=True)
    fine_tune(params, folder)
    if PartialState().is_main_process:
        store_threshold(params)
        remove_others(CHECKPOINTS, current=Path())


if __name__ == "__main__":
    run(main)
