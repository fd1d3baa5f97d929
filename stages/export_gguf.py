"""Write a router as GGUF for llama.cpp and Ollama, and measure with llama.cpp what it still answers right.

    python stages/export_gguf.py models/router

Reads the router and data/test.jsonl; writes models/gguf (f16, q8_0, Modelfile) and metrics/gguf.json.
Needs the extra `export`: pip install ".[export]"
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from router.agents import Agent
from router.encoding import Encoder
from router.errors import InputError, run
from router.examples import Example, read_conversations
from router.functiongemma import STOP_TOKENS, Answer, Call, parse
from router.metrics import share, write_metrics
from router.router import Router

if TYPE_CHECKING:
    from llama_cpp import Llama

TEST = "data/test.jsonl"
OUTPUT = Path("models/gguf")
KINDS = ("f16", "q8_0")
MAX_NEW_TOKENS = 64


def answer(llama: "Llama", encoder: Encoder, messages: Sequence[Sequence[int]]) -> Iterator[Answer]:
    """What llama.cpp answers to each message, given as token ids: greedily, without a grammar."""
    stop = {encoder.control[token] for token in STOP_TOKENS}
    for message in messages:
        # The state of what a prompt shares with the one before is kept: the prefix is computed once.
        tokens = llama.generate([*encoder.prefix, *message, *encoder.turn], temp=0.0)
        ids = list(islice(takewhile(lambda token: token not in stop, tokens), MAX_NEW_TOKENS))
        yield parse(encoder.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))


def measure(
    answers: list[Answer], pytorch: list[Answer], examples: list[Example], agents: list[Agent]
) -> dict[str, Any]:
    """Accuracy of the agents and of whole calls, and shares of valid answers and of those equal to PyTorch's."""
    known = {agent.name: agent for agent in agents}
    calls = [answer.calls[0] if len(answer.calls) == 1 else Call("", {}) for answer in answers]
    valid = [call.name in known and not known[call.name].problem_with(call.arguments) for call in calls]
    right = [call.name == example.agent for call, example in zip(calls, examples, strict=True)]
    whole = [
        call == Call(example.agent or "", example.arguments) for call, example in zip(calls, examples, strict=True)
    ]
    equal = [one == other for one, other in zip(answers, pytorch, strict=True)]
    return share(right) | {
        "call_accuracy": float(np.mean(whole)),
        "valid_rate": float(np.mean(valid)),
        "equal_to_pytorch": float(np.mean(equal)),
    }


def main() -> None:
    if len(sys.argv) != 2:
        raise InputError("usage: python stages/export_gguf.py MODEL")
    try:
        from llama_cpp import Llama

        from router.gguf_export import modelfile, template, write_gguf
    except ImportError as error:
        raise InputError(f'{error.name} is not installed; run pip install ".[export]"') from None
    router = Router.from_pretrained(sys.argv[1])
    tokenizer, agents, settings = router.tokenizer, router.agents, router.settings
    encoder = Encoder(tokenizer, agents, settings.system)
    context = len(encoder.prefix) + settings.max_query_tokens + len(encoder.turn) + MAX_NEW_TOKENS
    examples = read_conversations(TEST)
    queries = [example.query for example in examples]
    messages = [encoder.message(query, settings.max_query_tokens)[0] for query in queries]
    pytorch = list(tqdm(router.generate(queries, max_new_tokens=MAX_NEW_TOKENS), "PyTorch", len(queries)))
    threads = torch.get_num_threads()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    metrics = {}
    for kind in KINDS:
        file = OUTPUT / f"router-{kind}.gguf"
        write_gguf(router.model, tokenizer, file, kind)
        # The cache is kept whole in sliding layers too, or there would be no going back to the end of the prefix.
        with closing(
            Llama(str(file), n_ctx=context, swa_full=True, n_threads=threads, n_threads_batch=threads, verbose=False)
        ) as llama:
            read = [llama.tokenize(query.encode(), add_bos=False)[: settings.max_query_tokens] for query in queries]
            answers = list(tqdm(answer(llama, encoder, messages), kind, len(messages)))
        metrics[kind] = measure(answers, pytorch, examples, agents) | {
            "equal_tokens": float(np.mean([one == other for one, other in zip(read, messages, strict=True)]))
        }
        print(
            f"{file}: {metrics[kind]['correct']}/{metrics[kind]['total']} agents right, "
            f"{metrics[kind]['call_accuracy']:.1%} whole calls, {metrics[kind]['equal_to_pytorch']:.1%} as PyTorch"
        )
    prompt = template(tokenizer, agents, settings.system)
    text = modelfile(f"./router-{KINDS[-1]}.gguf", prompt, context, MAX_NEW_TOKENS)
    (OUTPUT / "Modelfile").write_text(text, encoding="utf-8")
    write_metrics(metrics, "metrics/gguf.json")


if __name__ == "__main__":
    run(main)
