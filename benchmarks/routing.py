"""What routing a message costs, beside what a user would write with Transformers instead.

    python benchmarks/routing.py --shape functiongemma
    python benchmarks/routing.py --shape embedded --dtype fp32 --repeats 20

The physics: a prompt of 550 tokens goes before a message of 20, and the answer is a call of 25. Plain `generate`
computes the prompt again for every message (2 operations a weight and token), then takes a step for each token of the
answer, and each step reads all the weights and the whole head (262,144 rows) from memory. Keeping the prompt's keys and
values saves the first part only. The router also knows that most of the call's tokens are forced: it takes one pass
over the message and the start of the call, and one short pass for each further choice, with a few rows of the head.

In fp32 on a CPU the same passes also go through ONNX Runtime, where the extra `export` is installed (rows onnx).

What no implementation of that can beat is the floor printed below: the weights are read once for each pass, and every
token up to the last choice meets every weight once.

Variants take turns within one run, so that a change of the machine's speed meets all of them. Times are from text in to
answer out: wall clock, or processor time with --threads 1, which a busy machine hardly disturbs. Prints a table, and as
its last line one JSON object.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script

from benchmarks.common import (
    DEVICE,
    DTYPES,
    SHAPES,
    Setting,
    build,
    machine,
    print_json,
    print_machine,
    print_table,
    seconds,
)
from router.errors import InputError, run
from router.examples import DECLINE
from router.functiongemma import DEFAULT_SYSTEM, render
from router.grammar import AGENT, Grammar
from router.router import Router

NEW_TOKENS = 28
"""Tokens of an answer of plain `generate`: a call, with what ends it."""
NAIVE_BATCH = 32


@dataclass(frozen=True)
class Variant:
    """One way to answer `batch` messages."""

    name: str
    batch: int
    answer: Callable[[list[str]], object]
    slow: bool = False
    """Measured once, without a warm-up."""


class Plain:
    """What a user would write with Transformers."""

    def __init__(self, model: Any, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.tools = [agent.tool_schema() for agent in setting.agents]
        self.cache: DynamicCache | None = None
        # Random weights would end an answer anywhere: every answer gets the length of a call.
        self.options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

    def generate(self, queries: list[str]) -> list[str]:
        """The whole prompt for every message, padded on the left."""
        tokenizer = self.setting.tokenizer
        prompts = []
        for query in queries:
            messages = [{"role": "developer", "content": DEFAULT_SYSTEM}, {"role": "user", "content": query}]
            prompts.append(render(tokenizer, messages, self.tools, generation_prompt=True))
        inputs = tokenizer(
            prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        ).to(DEVICE)
        ids = self.model.generate(**inputs, **self.options)
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])

    def generate_after_prefix(self, queries: list[str]) -> list[str]:
        """One message, with a copy of the prompt's keys and values."""
        encoder = self.setting.encoder
        prefix = torch.tensor([encoder.prefix], device=DEVICE)
        if self.cache is None:
            self.cache = DynamicCache(config=self.model.config)
            with torch.inference_mode():
                self.model.model(input_ids=prefix, past_key_values=self.cache, use_cache=True)
        (query,) = queries
        rest = torch.tensor([[*encoder.text(query), *encoder.turn]], device=DEVICE)
        ids = torch.cat([prefix, rest], dim=1)
        cache = copy.deepcopy(self.cache)  # it grows, and a sliding window's cannot be cut back
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, pad_token_id=0, **self.options
        )
        return self.setting.tokenizer.batch_decode(output[:, ids.shape[1] :])


def in_batches(router: Router, size: int) -> Callable[[list[str]], object]:
    return lambda queries: list(router.route_many(queries, size))


def onnx_variants(model: Any, setting: Setting) -> list[Variant]:
    """The router in ONNX Runtime, exported to a folder that is gone once it is loaded."""
    try:
        from router.onnx_runtime import export
    except InputError as error:
        print(f"rows onnx and onnx-32 are left out: {error}")
        return []
    with TemporaryDirectory() as folder:
        step = Path(folder) / "step.onnx"
        export(model, step)
        router = Router(model, setting.tokenizer, setting.agents, step=step)
    return [
        Variant("onnx", 1, lambda queries: router.route(queries[0])),
        Variant("onnx-32", 32, in_batches(router, 32)),
    ]


def variants(
    setting: Setting, dtype: torch.dtype, quick: bool, wanted: list[str] | None
) -> tuple[list[Variant], float]:
    """Everything that is compared in one precision, and the seconds that making a router from a model takes."""
    model = setting.new_model(dtype).eval()
    # The router sets its own attention: the other side gets a module of its own, on the same weights.
    plain = Plain(copy.deepcopy(model, {id(weights): weights for weights in model.parameters()}), setting)
    routers: list[Router] = []
    first = seconds(lambda: routers.append(Router(model, setting.tokenizer, setting.agents)))
    router = routers[0]

    onnx = DEVICE.type == "cpu" and dtype == torch.float32 and (wanted is None or {"onnx", "onnx-32"} & {*wanted})
    return [
        Variant("generate", 1, plain.generate),
        Variant("generate-batch", 4 if quick else NAIVE_BATCH, plain.generate, slow=True),
        Variant("generate-prefix", 1, plain.generate_after_prefix),
        Variant("route", 1, lambda queries: router.route(queries[0])),
        *[Variant(f"route-{size}", size, in_batches(router, size)) for size in (1, 8, 32, 64)],
        *(onnx_variants(model, setting) if onnx else []),
    ], first


# ---------------------------------------------------------------------------------------------------------------------
# The floor


def passes_and_tokens(setting: Setting) -> tuple[float, float]:
    """Means over the messages: passes through the network, and tokens in them, that cannot be avoided."""
    root = Grammar(setting.agents, setting.encoder, DECLINE).root
    passes, tokens = [], []
    for example in setting.examples:
        state, last, choices = root, 0, 0
        for place, token in enumerate(setting.call(example)):
            if state.is_choice:
                # All choices of the agent's name share a pass: its alternatives are few, and are all computed.
                choices += state.decides != AGENT
                last = place
            state = state.edges.get(token, state)
        passes.append(1 + choices)
        # What is predicted at the last choice is not computed any more.
        tokens.append(len(setting.encoder.text(example.query)) + len(setting.encoder.turn) + last)
    return statistics.mean(passes), statistics.mean(tokens)


def floor(setting: Setting, dtype: str, measured: dict[str, Any]) -> dict[str, float]:
    """The least that one message can cost once the prompt is computed."""
    config, prefix = setting.config, len(setting.encoder.prefix)
    passes, tokens = passes_and_tokens(setting)
    trunk = setting.trunk_parameters()
    width = DTYPES[dtype].itemsize
    seen = [
        prefix if kind == "full_attention" else min(prefix, config.sliding_window) for kind in config.layer_types
    ]  # keys of the prefix that a message's token meets in each layer
    attention = 2 * tokens * sum(seen) * config.num_attention_heads * config.head_dim  # scores, weighted values
    multiply_adds = tokens * trunk + attention
    cached = 2 * sum(seen) * config.num_key_value_heads * config.head_dim  # keys and values
    read = passes * (trunk + cached) * width
    rates = measured["matrix_gflop_per_s"][dtype]
    reading_ms = read / measured["copy_gb_per_s"] / 1e6
    computing_ms = {rows: 2 * multiply_adds / rate / 1e6 for rows, rate in rates.items()}
    return {
        "passes": passes,
        "tokens": tokens,
        "read_mb": read / 1e6,
        "multiply_adds_g": multiply_adds / 1e9,
        "reading_ms": reading_ms,
        "computing_ms": computing_ms[1024],
        "computing_few_rows_ms": computing_ms[32],
        "one_message_ms": max(reading_ms, computing_ms[1024]),
        "one_message_few_rows_ms": max(reading_ms, computing_ms[32]),
    }


# ---------------------------------------------------------------------------------------------------------------------


def measure(
    by_dtype: dict[str, list[Variant]], queries: list[str], repeats: int, warm: bool
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds a message of every variant, one figure a repeat; variants take turns."""
    order = [(dtype, variant) for dtype, some in by_dtype.items() for variant in some]
    times: dict[tuple[str, str], list[float]] = {(dtype, variant.name): [] for dtype, variant in order}
    rounds = range(-1 if warm else 0, repeats)
    with tqdm(total=len(rounds) * len(order), unit="run", file=sys.stderr) as progress:
        for number in rounds:
            for dtype, variant in order:
                progress.set_postfix_str(f"{dtype} {variant.name}")
                if not variant.slow or number == 0:
                    start = number % len(queries)
                    batch = [*queries[start:], *queries[:start]][: variant.batch]
                    taken = seconds(lambda: variant.answer(batch))  # noqa: B023 (called at once)
                    if number >= 0:
                        times[dtype, variant.name].append(1000 * taken / variant.batch)
                progress.update()
    return times


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """How many times faster each of our rows is than plain generate, alone and in batches."""
    found = {}
    for name, median in medians.items():
        for other in ("generate", "generate-batch"):
            if name != other and other in medians:
                found[f"{name} / {other}"] = medians[other] / median
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="functiongemma")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="repeatable; default fp32 and bf16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these rows")
    parser.add_argument("--quick", action="store_true", help="one repeat, no warm-up, a small batch for generate")
    options = parser.parse_args()
    dtypes = options.dtype or ["fp32", "bf16"]
    measured = machine(options.threads, dtypes)
    setting = build(options.shape)

    by_dtype, first = {}, {}
    for dtype in dtypes:
        by_dtype[dtype], first[dtype] = variants(setting, DTYPES[dtype], options.quick, options.variants)
    names = dict.fromkeys(variant.name for some in by_dtype.values() for variant in some)
    if unknown := set(options.variants or []) - set(names):
        raise InputError(f"--variants: no {', '.join(sorted(unknown))} (there are {', '.join(names)})")
    for dtype, some in by_dtype.items():
        by_dtype[dtype] = [variant for variant in some if variant.name in (options.variants or names)]
    queries = [example.query for example in setting.examples]
    times = measure(by_dtype, queries, 1 if options.quick else options.repeats, warm=not options.quick)
    floors = {dtype: floor(setting, dtype, measured) for dtype in dtypes}

    print_machine(measured, setting.lengths())
    rows, results = [], {}
    for dtype, some in by_dtype.items():
        medians = {variant.name: statistics.median(times[dtype, variant.name]) for variant in some}
        found = ratios(medians)
        for variant in some:
            took, median = times[dtype, variant.name], medians[variant.name]
            shown = [found.get(f"{variant.name} / {other}") for other in ("generate", "generate-batch")]
            rows.append(
                [
                    dtype,
                    variant.name,
                    str(variant.batch),
                    f"{median:.1f}",
                    f"{min(took):.1f}-{max(took):.1f}",
                    str(len(took)),
                    f"{1000 / median:.1f}",
                    *[f"{ratio:.1f}" if ratio else "" for ratio in shown],
                    f"{median / floors[dtype]['one_message_ms']:.1f}",
                ]
            )
        results[dtype] = {
            "ms": medians,
            "spread_ms": {variant.name: [min(t), max(t)] for variant in some if (t := times[dtype, variant.name])},
            "ratios": found,
            "first_call_ms": 1000 * first[dtype],
            "floor": floors[dtype],
        }
    print_table(
        ["dtype", "variant", "batch", "ms/query", "min-max", "n", "queries/s", "x generate", "x batched", "x floor"],
        rows,
    )
    for dtype in dtypes:
        least = floors[dtype]
        print(
            f"{dtype}: first call (grammar and the prompt, once) {1000 * first[dtype]:.0f} ms. Floor of one message "
            f"{least['one_message_ms']:.1f} ms: {least['passes']:.1f} passes read {least['read_mb']:.0f} MB in "
            f"{least['reading_ms']:.1f} ms; {least['tokens']:.0f} tokens take {least['multiply_adds_g']:.2f} G "
            f"multiply-adds, {least['computing_ms']:.1f} ms at the rate of many rows, "
            f"{least['computing_few_rows_ms']:.1f} ms at that of few"
        )
    print_json({"benchmark": "routing", "shape": options.shape, "machine": measured,
                "tokens": setting.lengths(), "results": results})  # fmt: skip


if __name__ == "__main__":
    run(main)
