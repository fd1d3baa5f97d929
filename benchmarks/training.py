"""What an optimizer step of fine-tuning costs, beside TRL's SFTTrainer as a user would call it.

    python benchmarks/training.py --shape functiongemma
    python benchmarks/training.py --shape embedded --dtype fp32 --repeats 5

The physics: a step trains on 12 examples of 600 tokens, of which the first 550 are the same prompt. TRL computes all
7,200 tokens, and on a CPU the head of 262,144 rows at each of them (on a GPU at labelled ones), forward, backward and
once more, since it keeps no logits. Under causal attention the prompt's hidden states do not depend on what follows, so
one packed row of prompt and 12 suffixes, 1,130 tokens, gives the same gradients; and the head is needed only where a
label stands, at the 300 tokens of the calls.

    trl-full         SFTTrainer, loss on the whole sequence, 4 x 3 examples: the usual settings
    trl-completion   the same with loss on the call only
    ours             as stages/train.py configures it: loss on the call only, one packed row of 12

Every variant runs in a process of its own, so that its peak memory is its own, and they take turns. bf16 and fp16 mean
autocast: weights and optimizer stay in fp32. Gradient checkpointing is off everywhere. The floor is the multiply-adds
that the packed row needs, at the measured matrix rate. Prints a table, and as its last line one JSON object.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script

from benchmarks.common import (
    DEVICE,
    DTYPES,
    ROOT,
    SHAPES,
    Setting,
    build,
    clock,
    machine,
    peak_memory,
    print_json,
    print_machine,
    print_table,
)
from router.errors import InputError, run
from router.params import load_params
from router.prefix_sharing import IGNORED
from router.training import configuration, features, keep_freed_memory, make_trainer

VARIANTS = ("trl-full", "trl-completion", "ours")
RUN_STEPS = 120
"""Steps of the whole run: 92 examples, 15 epochs."""


class Timer(TrainerCallback):
    """Seconds of each optimizer step, batching included, and the tokens that went through the network."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.tokens = 0
        self.ends: list[float] = []
        embedding: Any = model.get_input_embeddings()
        embedding.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.tokens += inputs[0].numel()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(clock())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(clock())

    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def measure(shape: str, variant: str, dtype: str, steps: int, warm_up: int, threads: int) -> dict[str, Any]:
    """Train for a few steps; called in a process of its own."""
    torch.set_num_threads(threads)
    if variant == "ours":
        keep_freed_memory()
    setting, params = build(shape), load_params(ROOT / "params.yaml")
    train = params.train.model_copy(update={"share_prefix": variant == "ours", "lora_rank": 0})
    params = params.model_copy(update={"train": train})
    examples = setting.examples[: params.batch_size * params.gradient_accumulation]  # all of them in every step
    model = setting.new_model(torch.float32)
    timer = Timer(model)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        config = configuration(params, Path(folder), params.lr, dtype)
        config.max_steps = warm_up + steps
        config.eval_strategy, config.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
        config.load_best_model_at_end = False
        trainer: Any = make_trainer(
            params, model, setting.encoder, config, (examples, examples), Path(folder) / "loss.csv"
        )
        if variant == "trl-full":
            # TRL's collator then takes every token for a label.
            trainer.train_dataset = trainer.train_dataset.remove_columns("labels")
        trainer.add_callback(timer)
        trainer.train()
    assert len(timer.steps()) == warm_up + steps, timer.steps()
    return {
        "seconds": timer.steps()[warm_up:],
        "peak_gb": peak_memory(),
        "tokens": timer.tokens / (warm_up + steps),
        "loss": trainer.state.log_history[0]["loss"],
    }


def in_a_process(*arguments: Any) -> dict[str, Any]:
    """`measure` in a fresh process.

    Raises:
        InputError: the process was killed, which is nearly always for want of memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, *arguments).result()
        except BrokenProcessPool:
            raise InputError(f"{' '.join(map(str, arguments[:3]))}: its process was killed; out of memory?") from None


def floor(setting: Setting, dtype: str, measured: dict[str, Any]) -> dict[str, float]:
    """The least that a step of packed examples can cost: 3 multiply-adds a weight and token, forward and backward."""
    params = load_params(ROOT / "params.yaml")
    count = params.batch_size * params.gradient_accumulation
    rows = features(setting.examples[:count], setting.encoder, params.train.max_length)
    prefix = len(setting.encoder.prefix)
    suffixes = [len(row["input_ids"]) - prefix for row in rows]
    labelled = sum(label != IGNORED for row in rows for label in row["labels"])
    config = setting.config
    tokens = prefix + sum(suffixes)
    pairs = 0.0  # of a token and one that it sees, over all layers
    for kind in config.layer_types:
        reach = prefix if kind == "full_attention" else min(prefix, config.sliding_window)
        pairs += reach * (prefix - reach / 2) + sum(length * (reach + length / 2) for length in suffixes)
    multiply_adds = 3 * (
        tokens * setting.trunk_parameters()
        + labelled * config.vocab_size * config.hidden_size
        + 2 * pairs * config.num_attention_heads * config.head_dim
    )
    return {
        "tokens": tokens,
        "labelled": labelled,
        "multiply_adds_g": multiply_adds / 1e9,
        "seconds": 2 * multiply_adds / measured["matrix_gflop_per_s"][dtype][1024] / 1e9,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    taken = [second for one in runs for second in one["seconds"]]
    return {
        "seconds": statistics.median(taken),
        "spread": [min(taken), max(taken)],
        "steps": len(taken),
        "peak_gb": max(one["peak_gb"] for one in runs),
        "tokens": runs[0]["tokens"],
        "loss": runs[0]["loss"],
        "run_minutes": RUN_STEPS * statistics.median(taken) / 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="functiongemma")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="repeatable; default fp32, bf16, on CUDA fp16")
    parser.add_argument("--repeats", type=int, default=1, help="processes for each row")
    parser.add_argument("--steps", type=int, default=2, help="measured in each process, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="only these rows")
    parser.add_argument("--quick", action="store_true", help="one step in one process, no warm-up")
    options = parser.parse_args()
    dtypes = options.dtype or ["fp32", "bf16"] + (["fp16"] if DEVICE.type == "cuda" else [])
    if "fp16" in dtypes and DEVICE.type == "cpu":
        raise InputError("--dtype fp16: training in it needs a CUDA device")
    repeats, steps, warm_up = (1, 1, 0) if options.quick else (options.repeats, options.steps, 1)
    measured = machine(options.threads, dtypes)
    setting = build(options.shape)

    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        dtype: {variant: [] for variant in options.variants} for dtype in dtypes
    }
    turns = [(dtype, variant) for _ in range(repeats) for dtype in dtypes for variant in options.variants]
    with tqdm(turns, unit="process", file=sys.stderr) as progress:
        for dtype, variant in progress:
            progress.set_postfix_str(f"{dtype} {variant}")
            runs[dtype][variant].append(in_a_process(options.shape, variant, dtype, steps, warm_up, options.threads))

    print_machine(measured, setting.lengths())
    table = []
    results: dict[str, dict[str, Any]] = {}
    for dtype in dtypes:
        least = floor(setting, dtype, measured)
        found = {variant: summary(some) for variant, some in runs[dtype].items()}
        ratios = {}
        for variant, row in found.items():
            usual = found.get("trl-full")
            if usual:
                ratios[variant] = {
                    "faster": usual["seconds"] / row["seconds"],
                    "memory": row["peak_gb"] / usual["peak_gb"],
                }
            low, high = row["spread"]
            table.append(
                [
                    dtype,
                    variant,
                    f"{row['seconds']:.2f}",
                    f"{low:.2f}-{high:.2f}",
                    str(row["steps"]),
                    f"{ratios[variant]['faster']:.1f}" if usual else "",
                    f"{row['peak_gb']:.2f}",
                    f"{ratios[variant]['memory']:.2f}" if usual else "",
                    f"{row['tokens']:.0f}",
                    f"{row['seconds'] / least['seconds']:.1f}",
                    f"{row['run_minutes']:.1f}",
                ]
            )
        results[dtype] = {"rows": found, "ratios": ratios, "floor": least}
    print_table(
        ["dtype", "variant", "s/step", "min-max", "n", "x trl-full", "peak GB", "of trl-full", "tokens", "x floor",
         f"{RUN_STEPS} steps, min"],
        table,
    )  # fmt: skip
    for dtype in dtypes:
        least = results[dtype]["floor"]
        print(
            f"{dtype}: floor {least['seconds']:.2f} s a step: {least['tokens']} tokens, {least['labelled']} of them "
            f"labelled, {least['multiply_adds_g']:.0f} G multiply-adds"
        )
    print_json({"benchmark": "training", "shape": options.shape, "machine": measured,
                "tokens": setting.lengths(), "results": results})  # fmt: skip


if __name__ == "__main__":
    run(main)
