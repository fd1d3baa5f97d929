"""Export a router for ONNX Runtime, and check it against PyTorch on the test split.

    python stages/export_onnx.py models/router models/onnx

Writes a whole checkpoint with step.onnx, for `Router.from_pretrained("models/onnx", runtime="onnxruntime")`, and
metrics/onnx.json. Every call on data/test.jsonl must be PyTorch's. The same in 8 bits, step_int8.onnx, stays only where
99 % of the calls are. Needs the extra `export`.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from router.errors import InputError, run
from router.examples import Example, read_conversations
from router.metrics import write_metrics
from router.predictions import as_json
from router.router import STEP_FILES, Route, Router
from router.scoring import score

TEST, METRICS = "data/test.jsonl", "metrics/onnx.json"
NEEDED = {"onnxruntime": 1.0, "onnxruntime-int8": 0.99}
"""Share of the calls that must be PyTorch's."""


def answers(router: Router, examples: list[Example], title: str) -> list[Route]:
    return list(tqdm(router.route_many(example.query for example in examples), title, len(examples)))


def compare(routes: list[Route], expected: list[Route], examples: list[Example]) -> dict[str, float]:
    """The share of calls that are the expected ones, and the shares of right agents and of right calls."""
    same = [(a.agent, a.arguments) == (b.agent, b.arguments) for a, b in zip(routes, expected, strict=True)]
    right = score(
        predictions=[{"agent": route.agent, "arguments": as_json(route.arguments)} for route in routes],
        references=[{"agent": example.agent, "arguments": as_json(example.arguments)} for example in examples],
    )
    return {"agreement": sum(same) / len(same)} | {key: right[key] for key in ("accuracy", "call_accuracy")}


def write(router: Router, files: dict[str, Path]) -> None:
    from router.onnx_runtime import export, quantize  # only now: without its packages it ends in one clear line

    with warnings.catch_warnings():  # PyTorch's exporter and the quantisation talk to their own developers
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        export(router.model, files["onnxruntime"])
        quantize(files["onnxruntime"], files["onnxruntime-int8"])
        logging.disable(logging.NOTSET)


def main() -> None:
    if len(sys.argv) != 3:
        raise InputError("usage: python stages/export_onnx.py MODEL FOLDER")
    folder = Path(sys.argv[2])
    files = {runtime: folder / name for runtime, name in STEP_FILES.items()}
    transformers_logging.disable_progress_bar()
    examples = read_conversations(TEST)
    router = Router.from_pretrained(sys.argv[1], device="cpu")
    router.save_pretrained(folder)
    print(f"{folder}: exporting, which takes seconds for the embedded base and minutes for FunctionGemma", flush=True)
    write(router, files)

    expected = answers(router, examples, "torch")
    metrics: dict[str, dict[str, Any]] = {}
    for runtime, file in files.items():
        routes = answers(Router.from_pretrained(folder, runtime=runtime), examples, runtime)
        metrics[runtime] = compare(routes, expected, examples)
        agreement = metrics[runtime]["agreement"]
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {agreement:.2%} of the calls are PyTorch's")
        kept = agreement >= NEEDED[runtime]
        metrics[runtime]["kept"] = kept
        if not kept:
            file.unlink()
            print(f"{file}: removed, {NEEDED[runtime]:.0%} are needed")
    write_metrics(metrics, METRICS)
    if not metrics["onnxruntime"]["kept"]:
        raise InputError(f"{folder}: ONNX Runtime's calls in float32 are not PyTorch's, so it cannot be used here")


if __name__ == "__main__":
    run(main)
