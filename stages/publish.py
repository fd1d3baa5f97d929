"""Package the model and the data with their cards, check both, and upload them to the Hugging Face Hub.

    python stages/publish.py

Reads models/router, data/{train,validation,test}.jsonl and metrics/; writes models/package and data/package.
Uploads only where params.yaml says `hub.dry_run: false`, with the token of HF_TOKEN or of `hf auth login`.
"""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import disable_progress_bars, load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard
from huggingface_hub.utils import logging
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from router.agents import Agent, load_agents
from router.cards import CONFIGURATIONS, SPLITS, check_card, dataset_card, model_card
from router.errors import InputError, run
from router.examples import read_conversations, write_jsonl
from router.functiongemma import STOP_TOKENS
from router.hub import Package, upload
from router.metrics import read_metrics
from router.params import Params, load_params
from router.predictions import as_json
from router.router import AGENTS_FILE, Router

MODEL, DATA, METRICS = Path("models/router"), Path("data"), Path("metrics")
MODEL_PACKAGE, DATA_PACKAGE = Path("models/package"), Path("data/package")
CHECKPOINT = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", AGENTS_FILE]
MEASURED = ("after", "baselines", "before", "comparison", "data")


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def package_model(params: Params, metrics: dict[str, Any]) -> None:
    """Write models/package: the checkpoint, settings that make plain `generate` stop, tools, metrics, card."""
    folder = emptied(MODEL_PACKAGE)
    for pattern in CHECKPOINT:
        for file in sorted(MODEL.glob(pattern)):
            shutil.copyfile(file, folder / file.name)
    router = Router.from_pretrained(folder, device="cpu")
    ids = router.tokenizer.convert_tokens_to_ids
    # FunctionGemma's own samples, and a model trained on calls ends them with another token than <eos>.
    GenerationConfig(
        do_sample=False,
        bos_token_id=router.tokenizer.bos_token_id,
        eos_token_id=[ids(token) for token in STOP_TOKENS],
        pad_token_id=router.tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tools = [agent.tool_schema() for agent in router.agents]
    (folder / "tools.json").write_text(json.dumps(tools, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "metrics").mkdir()
    for name in MEASURED:
        shutil.copyfile(METRICS / f"{name}.json", folder / "metrics" / f"{name}.json")
    weights = sum(parameter.numel() for parameter in router.model.parameters())
    example = " ".join(read_conversations(DATA / "test.jsonl")[0].query.split())
    card = model_card(params, router.agents, metrics, weights, router.settings.threshold, example)
    card.save(folder / "README.md")


def package_data(params: Params, agents: list[Agent], metrics: dict[str, Any]) -> None:
    """Write data/package: each split flat and as conversations, and the card."""
    folder = emptied(DATA_PACKAGE)
    (folder / "conversations").mkdir()
    for split in SPLITS:
        rows = [row.model_dump(exclude={"variant"}) for row in read_conversations(DATA / f"{split}.jsonl")]
        flat = [row | {"arguments": as_json(row["arguments"])} for row in rows]
        write_jsonl(flat, folder / CONFIGURATIONS["default"].format(split))
        shutil.copyfile(DATA / f"{split}.jsonl", folder / CONFIGURATIONS["conversations"].format(split))
    dataset_card(params, agents, metrics["data"]).save(folder / "README.md")


def check(metrics: dict[str, Any]) -> None:
    """Check both packages as a stranger would use them, and that the metrics belong to them.

    Raises:
        InputError: a package cannot be loaded, or does not hold what the metric files count.
    """
    check_card(ModelCard.load(MODEL_PACKAGE / "README.md"))
    check_card(DatasetCard.load(DATA_PACKAGE / "README.md"))
    threshold = Router.from_pretrained(MODEL_PACKAGE, device="cpu").settings.threshold
    if abs(threshold - metrics["after"]["abstention"]["threshold"]) > 1e-4:
        raise InputError(f"metrics/after.json was measured at another threshold than {threshold}; run `dvc repro`")
    with TemporaryDirectory() as cache:
        for name in CONFIGURATIONS:
            loaded = load_dataset(str(DATA_PACKAGE), name, cache_dir=cache)
            for split, counted in metrics["data"]["splits"].items():
                if len(loaded[split]) != counted["total"] + counted["out_of_scope"]:
                    raise InputError(f"data/{split}.jsonl: metrics/data.json counts other rows; run `dvc repro`")


def main() -> None:
    params = load_params()
    logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    hub = params.hub
    packages = [Package("dataset", hub.dataset_repo, DATA_PACKAGE), Package("model", hub.model_repo, MODEL_PACKAGE)]
    metrics = {name: read_metrics(METRICS / f"{name}.json") for name in MEASURED}
    package_model(params, metrics)
    package_data(params, load_agents(params.agents), metrics)
    check(metrics)
    for package in packages:
        visibility = "private" if hub.private else "public"
        print(f"{package.folder} -> {visibility} {package.kind} {package.repository}")
        for name in package.files():
            print(f"  {(package.folder / name).stat().st_size / 1e3:10.1f} kB  {name}")
    if hub.dry_run:
        print("checked, and nothing uploaded: params.yaml says hub.dry_run: true")
        return
    for address in upload(HfApi(), packages, hub.private):
        print(f"published {address}")


if __name__ == "__main__":
    run(main)
