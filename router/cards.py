"""Model and dataset card: templates of our own, every number read from the metric files. Knows no models."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router.agents import Agent
from router.errors import InputError
from router.examples import DECLINE
from router.figures import NAMES
from router.params import Params, first_problem
from router.report import agent_table, markdown_table, parameter_table, percent, quoted, result_table

Metrics = Mapping[str, Any]

OWN_LICENCE = "apache-2.0"
"""The licence of what this repository itself makes: the embedded base and the query bank."""
GEMMA_LICENCE = "gemma"
"""Of every other base: its control tokens make it a derivative of FunctionGemma."""
UNSTATED_LICENCE = "unknown"
"""Of data that are the user's own: theirs to state."""
OWN_DATA = "data/bank"

FEATURES = [
    {"name": "query", "dtype": "string"},
    {"name": "agent", "dtype": "string"},
    {"name": "arguments", "dtype": "string"},
    {"name": "family", "dtype": "string"},
    {"name": "tags", "list": "string"},
]
"""Of the flat form. `arguments` is JSON text: agents differ in theirs, and Arrow would fill the gaps with nulls."""
# Where the train, validation and test file of each configuration lie in the dataset's folder.
CONFIGURATIONS = {"default": "{}.jsonl", "conversations": "conversations/{}.jsonl"}
SPLITS = ("train", "validation", "test")


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")
    task: dict[str, str]
    dataset: dict[str, str]
    metrics: list[dict[str, str | float]] = Field(min_length=1)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    results: list[_Result] = Field(min_length=1)


class _ModelMetadata(BaseModel):
    """What the Hub asks of a model card's metadata block, as far as ours has it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    language: str
    license: str
    library_name: str
    pipeline_tag: str
    base_model: str | None = None
    datasets: list[str]
    metrics: list[str]
    tags: list[str]
    model_index: list[_Model] = Field(alias="model-index", min_length=1)


class _Configuration(BaseModel):
    model_config = ConfigDict(extra="forbid")
    config_name: str
    default: bool = False
    data_files: list[dict[str, str]] = Field(min_length=1)


class _DatasetMetadata(BaseModel):
    """What the Hub asks of a dataset card's metadata block, as far as ours has it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    language: str
    license: str
    pretty_name: str
    size_categories: list[str]
    task_categories: list[str]
    tags: list[str]
    configs: list[_Configuration] = Field(min_length=1)
    dataset_info: list[dict[str, Any]]


def check_card(card: ModelCard | DatasetCard) -> None:
    """Validate a card's metadata block without the Hub (`card.validate()` asks it), and that no gap is left.

    Raises:
        InputError: naming the key at fault.
    """
    schema = _ModelMetadata if isinstance(card, ModelCard) else _DatasetMetadata
    try:
        schema.model_validate(card.data.to_dict())
    except ValidationError as error:
        raise InputError(f"{schema.__name__.strip('_')} of the card: {first_problem(error)}") from None
    if "More Information Needed" in card.content:
        raise InputError("the card has a gap: [More Information Needed]")


def _render(template: str, metadata: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("router"),
        undefined=StrictUndefined,  # a number that is missing stops the stage instead of leaving a gap
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "plain": quoted,
        "literal": lambda text: json.dumps(text, ensure_ascii=False),
    }
    return f"---\n{metadata}\n---\n\n{environment.get_template(template).render(values)}"


def _evaluation(dataset: str, metrics: Metrics) -> list[EvalResult]:
    """The results for `model-index`, as fractions."""
    measured = {
        "accuracy": ("Right agent", metrics["accuracy"]),
        "exact_match": ("Whole call right", metrics["call_accuracy"]),
        "f1": ("Macro F1 of the agents", metrics["macro_f1"]),
        "roc_auc": ("Out-of-scope AUROC", metrics["out_of_scope"]["auroc"]),
    }
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Routing to an agent by a function call",
            dataset_type=dataset,
            dataset_name=dataset.rpartition("/")[2],
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, (name, value) in measured.items()
    ]


def model_card(
    params: Params,
    agents: Sequence[Agent],
    metrics: Mapping[str, Metrics],
    weights: int,
    threshold: float,
    example: str,
) -> ModelCard:
    """The card of the fine-tuned model.

    Args:
        metrics: the metric files `before`, `after`, `baselines`, `comparison` and `data` by name
        weights: number of the model's parameters
        threshold: below it the router abstains
        example: a message for the code that shows how to use the model
    """
    embedded = params.base == "embedded"
    on_hub = not embedded and params.base.count("/") == 1 and not params.base.startswith((".", "/", "~"))
    after = metrics["after"]
    results = {"before": metrics["before"], "after": after} | {
        name: metrics["baselines"][name] for name in NAMES if name in metrics["baselines"]
    }
    metadata = ModelCardData(
        language="en",
        license=OWN_LICENCE if embedded else GEMMA_LICENCE,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=params.base if on_hub else None,
        datasets=[params.hub.dataset_repo],
        metrics=["accuracy", "exact_match", "f1", "roc_auc"],
        tags=["function-calling", "tool-use", "routing", "intent-classification", "gemma3", "trl", "sft"],
        model_name=params.hub.model_repo.rpartition("/")[2],
        eval_results=_evaluation(params.hub.dataset_repo, after),
    )
    best = max(
        (name for name in results if name not in ("before", "after")), key=lambda name: results[name]["accuracy"]
    )
    text = _render(
        "model_card.md.jinja",
        metadata.to_yaml(),
        params=params,
        agents=agents,
        embedded=embedded,
        on_hub=on_hub,
        licence=metadata.license,
        results=results,
        best=(NAMES[best], results[best]),
        comparison=metrics["comparison"],
        data=metrics["data"],
        weights=weights,
        threshold=threshold,
        example=example,
        decline=DECLINE,
        tables={table.__name__: table(results) for table in (result_table, agent_table, parameter_table)},
        argument_table=_argument_table(agents),
    )
    return ModelCard(text)


def _argument_table(agents: Sequence[Agent]) -> str:
    rows = [
        [
            f"`{agent.name}`",
            f"`{name}`" + ("" if parameter.required else " (optional)"),
            parameter.type,
            ", ".join(f"`{value}`" for value in parameter.enum) or quoted(parameter.description),
        ]
        for agent in agents
        for name, parameter in agent.parameters.items()
    ]
    return markdown_table(["agent", "argument", "type", "values"], rows).replace("---:", "---")


def dataset_card(params: Params, agents: Sequence[Agent], data: Metrics) -> DatasetCard:
    """The card of the labelled queries; `data` is metrics/data.json."""
    own = params.data.source == OWN_DATA and params.data.test_source == OWN_DATA
    total = sum(data["splits"][split]["total"] + data["splits"][split]["out_of_scope"] for split in SPLITS)
    size = next((f"n<{label}" for limit, label in ((1_000, "1K"),) if total < limit), None)
    size = size or ("1K<n<10K" if total < 10_000 else "10K<n<100K" if total < 100_000 else "100K<n<1M")
    metadata = DatasetCardData(
        language="en",
        license=OWN_LICENCE if own else UNSTATED_LICENCE,
        pretty_name="Customer messages labelled with the agent that should answer",
        size_categories=[size],
        task_categories=["text-classification", "text-generation"],
        tags=["function-calling", "tool-use", "routing", "intent-classification"],
        configs=[
            {
                "config_name": name,
                **({"default": True} if name == "default" else {}),
                "data_files": [{"split": split, "path": path.format(split)} for split in SPLITS],
            }
            for name, path in CONFIGURATIONS.items()
        ],
        dataset_info=[{"config_name": "default", "features": FEATURES}],
    )
    splits = data["splits"]
    counts = markdown_table(
        ["split", "queries", "families", "out of scope", *(f"`{agent.name}`" for agent in agents)],
        [
            [name, *(str(splits[name][key]) for key in ("total", "families", "out_of_scope"))]
            + [str(splits[name]["agents"][agent.name]) for agent in agents]
            for name in SPLITS
        ],
    )
    values = markdown_table(
        ["value", *SPLITS],
        [
            [f"`{argument}` = `{value}`", *(str(splits[s]["values"].get(argument, {}).get(value, 0)) for s in SPLITS)]
            for argument in splits["train"]["values"]
            for value in sorted({value for s in SPLITS for value in splits[s]["values"].get(argument, {})})
        ],
    )
    lengths = markdown_table(
        ["split", "median tokens", "longest"],
        [[s, f"{splits[s]['query_tokens']['median']:.0f}", str(splits[s]["query_tokens"]["longest"])] for s in SPLITS],
    )
    text = _render(
        "dataset_card.md.jinja",
        metadata.to_yaml(),
        params=params,
        agents=agents,
        own=own,
        licence=metadata.license,
        data=data,
        decline=DECLINE,
        tables={"counts": counts, "values": values, "lengths": lengths},
        argument_table=_argument_table(agents),
    )
    return DatasetCard(text)
