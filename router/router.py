"""The router: a message goes in, one valid call comes out. What applications import; knows nothing of DVC or training.

from router import Router
router = Router.from_pretrained("models/router")
router.route("I was charged twice")
"""

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from router.agents import Agent, Value, load_agents, save_agents
from router.decoding import Decoded, Decoder, Step, TorchStep
from router.encoding import Encoder
from router.errors import InputError
from router.examples import DECLINE
from router.functiongemma import DEFAULT_SYSTEM, END_CALL, STOP_TOKENS, Answer, parse
from router.grammar import Grammar

AGENTS_FILE = "agents.yaml"
SETTINGS_FILE = "router.json"
STEP_FILES = {"onnxruntime": "step.onnx", "onnxruntime-int8": "step_int8.onnx"}
"""What computes in place of PyTorch, and the file beside the checkpoint that it reads."""
Result = TypeVar("Result")
WINDOW = 8
"""Batches that `route_many` reads ahead, to put messages of like length into one batch."""


@dataclass(frozen=True)
class Settings:
    """What travels with a checkpoint beside its agents."""

    system: str = DEFAULT_SYSTEM
    max_query_tokens: int = 256
    threshold: float = 0.0
    """Below this `Route.score` the router abstains."""


@dataclass(frozen=True)
class Route:
    """A routed message. All probabilities are in [0, 1]."""

    agent: str
    arguments: dict[str, Value]
    confidence: float
    """Probability of `agent` among all agents."""
    in_scope: float
    """Probability that any agent fits, against the model's own way to say that none does."""
    abstained: bool
    """True if `score` is below the threshold: a person should look. Agent and arguments are still the best guess."""
    argument_confidence: dict[str, float]
    """Probability of each argument given the agent and the arguments before it."""
    agents: dict[str, float]
    """Probability of every agent among all agents, highest first; they sum to 1."""
    truncated: bool
    """True if the message was longer than `max_query_tokens` and was cut there."""

    @property
    def score(self) -> float:
        """Probability that the message is in scope and belongs to `agent`."""
        return self.confidence * self.in_scope


class Router:
    """Routes messages with one model to one set of agents.

    It holds no state between calls, so it may be shared between threads, and it can be pickled.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        agents: Sequence[Agent],
        settings: Settings = Settings(),
        step: str | Path | None = None,
    ) -> None:
        """`step`: a file that `router.onnx_runtime.export` made of the model; by default PyTorch computes."""
        self.model, self.tokenizer, self.agents, self.settings = model.eval(), tokenizer, list(agents), settings
        self.step = step
        self._prepare()

    def _prepare(self) -> None:
        self._encoder = Encoder(self.tokenizer, self.agents, self.settings.system)
        grammar = Grammar(self.agents, self._encoder, DECLINE)
        if self.step is None:
            step: Step = TorchStep(self.model)
        else:
            # By name: the stages of the pipeline compute in PyTorch, and must not rerun when this module changes.
            step = import_module("router.onnx_runtime").OnnxStep(self.step)
        self._decoder = Decoder(self.model, step, grammar, self._encoder.prefix, self._encoder.turn)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        agents: str | Path | Sequence[Agent] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        settings: Settings | None = None,
        runtime: str = "torch",
    ) -> "Router":
        """Load a router from a folder or from the Hugging Face Hub.

        Args:
            path: folder or Hub id of a Transformers checkpoint (safetensors)
            agents: a declaration of agents, or agents; by default the ones that travel with the checkpoint
            device: by default "cuda" where there is one, else "cpu"
            dtype: of the weights; by default float32, in which the probabilities are exact to about 1e-6
            settings: by default those that travel with the checkpoint, or the library's own
            runtime: "torch", or "onnxruntime" or "onnxruntime-int8" for what stages/export_onnx.py wrote: faster on a
                CPU, in float32

        Raises:
            InputError: the checkpoint, its agents or its settings are missing or not usable, or the runtime is.
        """
        path = str(path)
        step = None
        if runtime != "torch":
            step, device = _step_file(path, runtime, device, dtype), "cpu"
        if agents is None:
            agents = _file_of(path, AGENTS_FILE)
            if agents is None:
                raise InputError(f"{path}: has no {AGENTS_FILE}; name the agents (agents=...)")
        if isinstance(agents, (str, Path)):
            agents = load_agents(agents)
        if settings is None:
            file = _file_of(path, SETTINGS_FILE)
            settings = load_settings(file) if file else Settings()
        model, tokenizer = load_checkpoint(path, dtype or torch.float32)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), tokenizer, agents, settings, step)  # type: ignore[arg-type]

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the checkpoint, its agents and its settings; the weights in `dtype`, by default as they are."""
        folder = Path(folder)
        model = self.model if dtype is None else copy.deepcopy(self.model).to(dtype)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_agents(self.agents, folder / AGENTS_FILE)
        save_settings(self.settings, folder)

    def route(self, query: str) -> Route:
        """Route one message.

        Raises:
            InputError: the message is empty.
        """
        return self._route([query])[0]

    def route_many(self, queries: Iterable[str], batch_size: int = 32) -> Iterator[Route]:
        """Route messages in batches, in order, reading only a few batches ahead.

        Raises:
            InputError: a message is empty.
        """
        yield from self._in_batches(queries, batch_size, self._route)

    def generate(self, queries: Iterable[str], batch_size: int = 32, max_new_tokens: int = 64) -> Iterator[Answer]:
        """What the model answers without the grammar, greedily: for measuring how well it knows the format."""

        def answer(batch: Sequence[str]) -> list[Answer]:
            stop = [self._encoder.control[token] for token in STOP_TOKENS]
            ids = self._decoder.generate([self._encode(query)[0] for query in batch], stop, max_new_tokens)
            return [parse(self._text(tokens)) for tokens in ids]

        yield from self._in_batches(queries, batch_size, answer)

    def _in_batches(
        self, queries: Iterable[str], batch_size: int, answer: Callable[[Sequence[str]], list[Result]]
    ) -> Iterator[Result]:
        queries = iter(queries)
        while window := list(islice(queries, WINDOW * batch_size)):
            order = sorted(range(len(window)), key=lambda place: len(window[place]))
            answers: dict[int, Result] = {}
            for start in range(0, len(window), batch_size):
                places = order[start : start + batch_size]
                answers.update(zip(places, answer([window[place] for place in places]), strict=True))
            for place in range(len(window)):
                yield answers[place]

    def _encode(self, query: str) -> tuple[list[int], bool]:
        if not query.strip():
            raise InputError("the query is empty")
        return self._encoder.message(query, self.settings.max_query_tokens)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.backend_tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def _route(self, queries: Sequence[str]) -> list[Route]:
        encoded = [self._encode(query) for query in queries]
        decoded = self._decoder.decode([ids for ids, _ in encoded])
        return [self._result(found, cut) for found, (_, cut) in zip(decoded, encoded, strict=True)]

    def _result(self, found: Decoded, truncated: bool) -> Route:
        answer = parse(self._text(found.tokens) + END_CALL)
        assert len(answer.calls) == 1, f"the grammar let through {answer}"
        call = answer.calls[0]
        scores = {name: score for name, score in found.agents.items() if name}
        total = float(np.logaddexp.reduce(list(scores.values())))
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
        agents = {name: math.exp(scores[name] - total) for name in ranked}
        in_scope = min(1.0, math.exp(total))
        arguments = dict.fromkeys(call.arguments, 1.0)
        skipped = 1.0  # probability of having come to this argument, where others could stand instead
        for decides, score in found.decisions:
            if decides in arguments:
                arguments[decides] *= math.exp(score) * skipped
            skipped = math.exp(score) * skipped if decides == "" else 1.0
        return Route(
            agent=call.name,
            arguments=call.arguments,  # type: ignore[arg-type]
            confidence=agents[call.name],
            in_scope=in_scope,
            abstained=agents[call.name] * in_scope < self.settings.threshold,
            argument_confidence=arguments,
            agents=agents,
            truncated=truncated,
        )


def load_checkpoint(path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a checkpoint: safetensors only, never code from the checkpoint.

    Raises:
        InputError: there is no usable checkpoint at `path`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    except Exception as error:  # each library raises its own, tokenizers even a bare Exception
        raise InputError(f"{path}: no usable checkpoint there ({_one_line(error)})") from None
    if model.config.model_type != "gemma3_text":
        raise InputError(f"{path}: is a {model.config.model_type} model; a router needs a gemma3_text model")
    return model, tokenizer


def load_settings(path: str | Path) -> Settings:
    """Read settings as `save_settings` writes them.

    Raises:
        InputError: the file does not hold settings.
    """
    try:
        return Settings(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not the settings of a router ({error})") from None


def save_settings(settings: Settings, folder: str | Path) -> None:
    text = json.dumps(asdict(settings), indent=2, sort_keys=True) + "\n"
    (Path(folder) / SETTINGS_FILE).write_text(text, encoding="utf-8")


def _step_file(path: str, runtime: str, device: str | torch.device | None, dtype: torch.dtype | None) -> Path:
    """The file from which a runtime other than PyTorch computes, absolute, so that a pickled router finds it again.

    Raises:
        InputError: there is no such runtime or file, or it computes elsewhere or otherwise.
    """
    if runtime not in STEP_FILES:
        raise InputError(f"runtime: there is no {runtime!r}; choose torch, {' or '.join(STEP_FILES)}")
    if torch.device(device or "cpu").type != "cpu" or dtype not in (None, torch.float32):
        raise InputError(f"runtime: {runtime} computes on the CPU in float32; leave out device and dtype")
    file = _file_of(path, STEP_FILES[runtime])
    if file is None:
        command = f"python stages/export_onnx.py {path} FOLDER"
        raise InputError(f"{path}: has no {STEP_FILES[runtime]}; make a folder with it: `{command}`")
    return Path(file).absolute()


def _file_of(path: str, name: str) -> str | None:
    """A file of a local or Hub checkpoint, or None if it has no such file.

    Raises:
        InputError: there is no such checkpoint.
    """
    try:
        return cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise InputError(f"{path}: no such folder, and no such model on the Hub ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
