"""Fine-tune the base model into the router with TRL's SFTTrainer.

    python stages/train.py

Reads models/base, data/{train,validation}.jsonl; writes models/router and plots/loss.csv.
Interrupted, it goes on from its last checkpoint and ends with the same weights.
"""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging

from router.agents import load_agents
from router.checkpoints import keep_only, last_complete, remove_incomplete, told_when_full, wait_for_turn
from router.encoding import Encoder
from router.errors import run
from router.examples import read_conversations
from router.metrics import choose_threshold
from router.params import Params, load_params
from router.router import Router, Settings, load_checkpoint, save_settings
from router.training import choose_precision, configuration, inputs_key, keep_freed_memory, make_trainer

BASE = Path("models/base")
OUTPUT = Path("models/router")
TRAIN, VALIDATION = Path("data/train.jsonl"), Path("data/validation.jsonl")
CURVE = Path("plots/loss.csv")
CHECKPOINTS = Path(".checkpoints")


def launch(params: Params) -> None:
    """Become `accelerate launch` of this stage on several processes; does not return."""
    # --multi_gpu means several processes, with or without GPUs; with --cpu accelerate starts one only, without a word.
    chosen = ["--multi_gpu", "--num_processes", str(params.train.processes), "--num_machines", "1"]
    chosen += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    if params.train.accelerate_config:
        chosen = ["--config_file", params.train.accelerate_config]
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *chosen, __file__])


def checkpoint_folder(params: Params) -> Path:
    """Checkpoints belong to one set of inputs: another gets another folder, and never loads these."""
    relevant = params.model_dump(exclude={"data", "embedded", "hub", "revision", "base"})
    base = sorted(file for file in BASE.iterdir() if file.is_file())
    return CHECKPOINTS / f"train-{inputs_key([Path(params.agents), TRAIN, VALIDATION, *base], relevant)}"


def fine_tune(params: Params, folder: Path) -> bool:
    """Train, and write the best checkpoint's weights to models/router; true in the process that wrote them."""
    agents = load_agents(params.agents)
    model, tokenizer = load_checkpoint(str(BASE), torch.float32)
    lr = params.lr * getattr(model.config, "lr_scale", 1.0)
    precision, reason = choose_precision(params.precision)
    arguments = configuration(params, folder, lr, precision)
    main: bool = arguments.process_index == 0
    with arguments.main_process_first(local=False):
        if main:
            wait_for_turn(CHECKPOINTS)
            folder.mkdir(exist_ok=True)
            remove_incomplete(folder)
        checkpoint = last_complete(folder)
    encoder = Encoder(tokenizer, agents, params.router.system)
    splits = read_conversations(TRAIN), read_conversations(VALIDATION)
    trainer = make_trainer(params, model, encoder, arguments, splits, CURVE)
    if main:
        examples = params.batch_size * params.gradient_accumulation * arguments.world_size
        print(f"{len(splits[0])} examples, {examples} a step; learning rate {lr:.3g}; {precision} ({reason})")
        if checkpoint:
            print(f"going on from {checkpoint}")
    with told_when_full(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if main:
            print(f"best validation loss {trainer.state.best_metric:.4f} at step {trainer.state.best_global_step}")
            trained = trainer.accelerator.unwrap_model(trainer.model)
            if params.train.lora_rank:
                trained = trained.merge_and_unload()
            shutil.rmtree(OUTPUT, ignore_errors=True)
            settings = Settings(params.router.system, params.router.max_query_tokens)
            Router(trained, tokenizer, agents, settings).save_pretrained(OUTPUT)
    return main


def store_threshold(params: Params) -> None:
    """Choose the threshold for abstaining on the validation split, and store it with the model."""
    router = Router.from_pretrained(OUTPUT)
    examples = read_conversations(VALIDATION)
    routes = list(router.route_many(example.query for example in examples))
    correct = [route.agent == example.agent for route, example in zip(routes, examples, strict=True)]
    precision = params.router.target_precision
    threshold = choose_threshold([route.score for route in routes], correct, precision)
    save_settings(replace(router.settings, threshold=round(threshold, 6)), OUTPUT)
    print(f"abstains below {threshold:.3f}: precision {precision} on {len(examples)} validation messages")


def main() -> None:
    params = load_params()
    logging.disable_progress_bar()  # of every file that is read or written
    # `accelerate launch` sets both of its own for its processes, the first even where it starts only one.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
    if not launched and (params.train.processes > 1 or params.train.accelerate_config):
        launch(params)
    CURVE.parent.mkdir(exist_ok=True)
    keep_freed_memory()
    if fine_tune(params, checkpoint_folder(params)):
        store_threshold(params)
        for finished in CHECKPOINTS.glob("train-*"):
            keep_only(finished, set())
            shutil.rmtree(finished)


if __name__ == "__main__":
    run(main)
