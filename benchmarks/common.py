"""What the benchmarks share: the two shapes with random weights, the machine's own rates, timing, the table.

Weights are random because time does not depend on them. Nothing is downloaded.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerBase

from router.agents import Agent, load_agents
from router.embedded.tokenizer import train_tokenizer
from router.encoding import Encoder
from router.errors import InputError
from router.examples import Example, read_bank
from router.functiongemma import DEFAULT_SYSTEM, Call

ROOT = Path(__file__).parents[1]
SHAPES = ("functiongemma", "embedded")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXAMPLES = 64
"""Messages of a benchmark: the largest batch."""


# ---------------------------------------------------------------------------------------------------------------------
# The shapes


@dataclass(frozen=True)
class Setting:
    """A shape and what it is asked: all that a benchmark needs but the weights."""

    config: Any
    """Gemma3TextConfig, whose annotations let every number be None."""
    tokenizer: PreTrainedTokenizerBase
    agents: list[Agent]
    encoder: Encoder
    examples: list[Example]
    """Messages of typical length, with their calls."""

    def new_model(self, dtype: torch.dtype) -> Gemma3ForCausalLM:
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(self.config)
        torch.nn.Module.to(model, DEVICE, dtype)
        return model

    def trunk_parameters(self) -> int:
        """Weights that every token meets: all but the embedding, which is also the head."""
        with torch.device("meta"):
            model = Gemma3ForCausalLM(self.config)
        return sum(weights.numel() for weights in model.model.layers.parameters())

    def call(self, example: Example) -> list[int]:
        """The labelled call of a message as token ids."""
        assert example.agent is not None, example
        return self.encoder.call(Call(example.agent, dict(example.arguments)))

    def lengths(self) -> dict[str, float]:
        """Tokens of the prompt's parts; means of message and call."""
        return {
            "prefix": len(self.encoder.prefix),
            "message": statistics.mean(len(self.encoder.text(example.query)) for example in self.examples),
            "turn": len(self.encoder.turn),
            "call": statistics.mean(len(self.call(example)) for example in self.examples),
        }


def functiongemma() -> tuple[Gemma3TextConfig, PreTrainedTokenizerBase, list[Agent]]:
    """google/functiongemma-270m-it: its configuration, and a stand-in for its tokenizer, which is not public.

    The stand-in is trained on our own text; its ids are the first of the 262,144 rows. Blanks are tokens of their own
    in it, so it needs more tokens for a text; fewer declared values bring the prompt to the length that the real one
    gives the default agents, about 550 tokens.
    """
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(18)],
        max_position_embeddings=32768,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    agents = load_agents(ROOT / "agents.yaml")
    texts = [example.query for example in read_bank(ROOT / "data/bank", agents)]
    for agent in agents:
        texts += [agent.name, agent.description]
        for name, parameter in agent.parameters.items():
            texts += [name, parameter.description, *parameter.enum]
    return config, train_tokenizer(texts, 8000), [with_fewer_values(agent, 9) for agent in agents]


def embedded() -> tuple[Gemma3TextConfig, PreTrainedTokenizerBase, list[Agent]]:
    """The embedded base as it stands in models/embedded, and the default agents."""
    folder = ROOT / "models/embedded"
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: not there; build it with `make embedded`")
    config = Gemma3TextConfig.from_pretrained(folder)
    return config, AutoTokenizer.from_pretrained(folder), load_agents(ROOT / "agents.yaml")


def with_fewer_values(agent: Agent, count: int) -> Agent:
    """The agent with the first `count` values of each enum."""
    parameters = {
        name: parameter.model_copy(update={"enum": parameter.enum[:count]})
        for name, parameter in agent.parameters.items()
    }
    return agent.model_copy(update={"parameters": parameters})


def build(shape: str) -> Setting:
    config, tokenizer, agents = functiongemma() if shape == "functiongemma" else embedded()
    # One message, of about 15 words: 20 tokens for FunctionGemma's tokenizer.
    typical = 20 if shape == "functiongemma" else 32
    encoder = Encoder(tokenizer, agents, DEFAULT_SYSTEM)
    by_name = {agent.name: agent for agent in agents}
    bank = [
        example
        for example in read_bank(ROOT / "data/bank", load_agents(ROOT / "agents.yaml"))
        if example.agent is not None and not by_name[example.agent].problem_with(example.arguments)
    ]
    bank.sort(key=lambda example: abs(len(encoder.text(example.query)) - typical))
    return Setting(config, tokenizer, agents, encoder, bank[:EXAMPLES])


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def clock() -> float:
    """Seconds: processor time with one thread, which neighbours on a busy machine hardly disturb, else wall clock."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if on_processor_time() else time.perf_counter()


def on_processor_time() -> bool:
    return DEVICE.type == "cpu" and torch.get_num_threads() == 1


def seconds(work: Callable[[], object]) -> float:
    """Time of `work`, with what it left running on the device."""
    start = clock()
    work()
    return clock() - start


def copy_bandwidth() -> float:
    """Bytes a second that a copy between two large buffers moves, read and written together; best of 5."""
    source = torch.ones(64 << 20, device=DEVICE)  # 256 MB: larger than any cache
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(5))


def matrix_rate(rows: int, dtype: torch.dtype) -> float:
    """Operations a second (two to a multiply-add) of a linear layer on so many rows; best of 5."""
    size, times = (2048, 4) if DEVICE.type == "cpu" else (8192, 20)
    weights = torch.randn(size, size, device=DEVICE, dtype=dtype)
    inputs = torch.randn(rows, size, device=DEVICE, dtype=dtype)

    def work() -> None:
        for _ in range(times):
            linear(inputs, weights)

    return 2 * rows * size * size * times / min(seconds(work) for _ in range(5))


def machine(threads: int, dtypes: Iterable[str]) -> dict[str, Any]:
    """What the floors are computed from. Many rows (1024) give the best rate, few (32) that of one message."""
    torch.set_num_threads(threads)
    rates = {name: {rows: matrix_rate(rows, DTYPES[name]) / 1e9 for rows in (1024, 32)} for name in dtypes}
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "threads": threads,
        "clock": "processor time" if on_processor_time() else "wall clock",
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],  # of others, at the start: above 0.5 the figures are not to be trusted
        "copy_gb_per_s": copy_bandwidth() / 1e9,
        "matrix_gflop_per_s": rates,
    }


def peak_memory() -> float:
    """Most memory that this process has held so far, in GB: on the card if there is one, else resident."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_reserved() / 1e9
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: a child begins there with the peak of the process that started it.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # macOS: bytes


# ---------------------------------------------------------------------------------------------------------------------
# The report


def print_machine(measured: dict[str, Any], lengths: dict[str, float]) -> None:
    print(
        f"{measured['device']}, threads {measured['threads']}, {measured['clock']}, load average "
        f"{measured['load_average']:.1f} at the start"
    )
    print(f"copy {measured['copy_gb_per_s']:.0f} GB/s read and written")
    for name, rates in measured["matrix_gflop_per_s"].items():
        print(f"linear layer {name}: {rates[1024]:.0f} GFLOP/s on 1024 rows, {rates[32]:.0f} on 32")
    print("tokens: " + ", ".join(f"{name} {length:.0f}" for name, length in lengths.items()))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their content, the first two to the left."""
    table = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    for number, row in enumerate(table):
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def print_json(values: dict[str, Any]) -> None:
    """One line, the last of stdout, floats to four significant digits."""
    print(json.dumps(_rounded(values)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
