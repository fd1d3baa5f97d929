"""Cards: whole, valid without the Hub, and true to the metric files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from huggingface_hub import DatasetCard, ModelCard
from jinja2 import UndefinedError

from router.cards import check_card, dataset_card, model_card
from router.errors import InputError
from router.metrics import read_metrics

NAMES = ("after", "baselines", "before", "comparison", "data")
GAPS = re.compile(r"More Information Needed|\bNone\b|\bnan\b|Undefined|\{\{|\{%")


@pytest.fixture(scope="module")
def metrics(publishable: Path) -> dict[str, Any]:
    return {name: read_metrics(publishable / "metrics" / f"{name}.json") for name in NAMES}


def card_of(metrics: dict[str, Any], **changes: Any) -> ModelCard:
    return model_card(tiny.params(**changes), tiny.AGENTS, metrics, 40_000, 0.25, 'He said: "refund"\\now')


def test_packaged_cards_are_valid_and_have_no_gap(publishable: Path) -> None:
    for card in (
        ModelCard.load(publishable / "models/package/README.md"),
        DatasetCard.load(publishable / "data/package/README.md"),
    ):
        check_card(card)
        assert not GAPS.search(card.content), card.content


def test_model_index_holds_the_measured_values(metrics: dict[str, Any]) -> None:
    results = {result.metric_type: result.metric_value for result in card_of(metrics).data.eval_results}
    after = metrics["after"]
    assert results["accuracy"] == after["accuracy"]
    assert results["exact_match"] == after["call_accuracy"]
    assert results["f1"] == after["macro_f1"]
    assert results["roc_auc"] == after["out_of_scope"]["auroc"]


def test_every_number_of_the_results_follows_the_metric_files(metrics: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(metrics))
    changed["after"] |= {"accuracy": 0.1234, "accuracy_low": 0.0567, "correct": 77, "chance": 0.3456}
    changed["after"]["free"]["valid_rate"] = 0.4321
    changed["after"]["agents"]["support_agent"]["accuracy"] = 0.2468
    changed["comparison"]["accuracy_gain"] = 0.0975
    text = card_of(changed).content
    for number in ("12.3 %", "5.7 %", "77 /", "34.6 %", "43.2 %", "24.7 %", "9.8 points", "0.1234"):
        assert number in text, number


def test_missing_number_stops_the_card(metrics: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(metrics))
    del broken["after"]["abstention"]["coverage"]
    with pytest.raises(UndefinedError):
        card_of(broken)


def test_embedded_base_is_called_a_stand_in(metrics: dict[str, Any]) -> None:
    card = card_of(metrics, base="embedded")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None
    assert "stand-in, not FunctionGemma" in card.content


def test_derivative_of_functiongemma_names_base_and_licence(metrics: dict[str, Any]) -> None:
    card = card_of(metrics, base="google/functiongemma-270m-it")
    check_card(card)
    assert (card.data.license, card.data.base_model) == ("gemma", "google/functiongemma-270m-it")
    assert "Gemma Terms of Use" in card.content
    assert "stand-in" not in card.content
    local = card_of(metrics, base="./my-functiongemma")
    assert (local.data.license, local.data.base_model) == ("gemma", None)


def test_code_of_the_card_is_python_whatever_the_example(metrics: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", card_of(metrics).content, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_licence_of_own_data_is_not_made_up(metrics: dict[str, Any]) -> None:
    values = tiny.settings()
    own = tiny.params(data=values["data"] | {"source": "mine.csv"})
    assert dataset_card(own, tiny.AGENTS, metrics["data"]).data.license == "unknown"
    assert dataset_card(tiny.params(), tiny.AGENTS, metrics["data"]).data.license == "apache-2.0"


def test_check_finds_what_the_hub_would_refuse(metrics: dict[str, Any]) -> None:
    good = card_of(metrics).content
    for bad, key in (
        (good.replace("license: apache-2.0", "licence: apache-2.0"), "license"),
        (good.replace("pipeline_tag: text-generation", "pipeline_tag: 3"), "pipeline_tag"),
        (good + "\n[More Information Needed]\n", "gap"),
    ):
        with pytest.raises(InputError, match=key):
            check_card(ModelCard(bad))
