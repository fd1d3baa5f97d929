"""What fine-tuning adds to TRL's trainer: `python -m pytest tests/test_training.py`."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerState
from trl import SFTTrainer

from router.errors import InputError
from router.examples import Example, conversation
from router.functiongemma import BOS, DEFAULT_SYSTEM, END_CALL, START_CALL, START_RESPONSE, parse
from router.prefix_sharing import IGNORED
from router.training import choose_precision, configuration, features, loss_table, make_trainer


def trainer(folder: Path, **changes: Any) -> SFTTrainer:
    params = tiny.params(**{"epochs": 2, **changes})
    arguments = configuration(params, folder / "checkpoints", params.lr, "fp32")
    splits = tiny.examples(20), tiny.examples(30)[20:]
    return make_trainer(params, tiny.model(), tiny.encoder(), arguments, splits, folder / "loss.csv")


# --- features ---------------------------------------------------------------------------------------------------------


def test_labels_are_exactly_the_answer() -> None:
    examples, tokenizer = tiny.examples(20), tiny.tokenizer()
    rows = features(examples, tiny.encoder(), 2048)
    assert len(rows) == len(examples)
    for row, example in zip(rows, examples, strict=True):
        text = tokenizer.decode(row["input_ids"])
        assert text.count(BOS) == 1
        assert text.startswith(BOS)
        assert example.query in text
        assert "None" not in text
        labels = [label for label in row["labels"] if label != IGNORED]
        assert row["input_ids"][-len(labels) :] == labels
        assert row["labels"][: -len(labels)] == [IGNORED] * (len(row["labels"]) - len(labels))
        answer = tokenizer.decode(labels)
        if example.agent is None:
            assert answer == "No agent fits this message.<end_of_turn>"
            continue
        (call,) = parse(answer).calls
        assert (call.name, call.arguments) == (example.agent, dict(example.arguments))
        assert answer.startswith(START_CALL)
        assert answer.endswith(END_CALL + START_RESPONSE)


def test_the_answer_of_a_known_example_is_this_text() -> None:
    example = Example(
        query="I was charged twice",
        agent="billing_agent",
        arguments={"urgency": "high", "request_type": "dispute"},
        family="f",
    )
    (row,) = features([example], tiny.encoder(), 2048)
    assert tiny.tokenizer().decode([label for label in row["labels"] if label != IGNORED]) == (
        "<start_function_call>call:billing_agent{request_type:<escape>dispute<escape>,urgency:<escape>high<escape>}"
        "<end_function_call><start_function_response>"
    )


def test_a_prompt_is_the_chat_template_s_own() -> None:
    for example, row in zip(tiny.examples(14), features(tiny.examples(14), tiny.encoder(), 2048), strict=True):
        rows = conversation(example, tiny.AGENTS, DEFAULT_SYSTEM)
        rendered = tiny.tokenizer().apply_chat_template(rows["messages"], tools=rows["tools"], tokenize=False)
        assert tiny.tokenizer().decode(row["input_ids"]).rstrip("\n") == rendered.rstrip("\n")


def test_too_long_an_example_is_an_error_never_cut() -> None:
    encoder = tiny.encoder()
    example = tiny.examples(1)[0]
    (row,) = features([example], encoder, 2048)
    length = len(row["input_ids"])
    assert features([example], encoder, length) == [row]
    with pytest.raises(InputError, match=rf"train.max_length.*needs {length} tokens.*{length - 1}"):
        features([example], encoder, length - 1)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "cpu", "wanted"),
    [
        ((9, 0), {}, "bf16"),
        ((8, 0), {}, "bf16"),
        ((7, 5), {"amx_bf16": True}, "fp16"),  # a T4 in a new server
        (None, {"avx512_bf16": True}, "bf16"),
        (None, {"avx512_bf16": False, "avx2": True}, "fp32"),
        (None, {}, "fp32"),
    ],
)
def test_auto_precision_follows_the_hardware(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, cpu: dict[str, bool], wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    precision, reason = choose_precision("auto")
    assert precision == wanted
    assert reason
    assert choose_precision("fp32")[0] == "fp32"


def test_fp16_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="precision: fp16 needs a GPU"):
        choose_precision("fp16")


def test_bf16_computes_in_bf16_on_weights_in_fp32(tmp_path: Path) -> None:
    params = tiny.params(epochs=1)
    arguments = configuration(params, tmp_path / "checkpoints", params.lr, "bf16")
    splits = tiny.examples(12), tiny.examples(4)
    trained = make_trainer(params, tiny.model(), tiny.encoder(), arguments, splits, tmp_path / "loss.csv")
    seen = set()
    # In a layer: autocast must reach the network itself, not only what is around it.
    trained.model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trained.train()
    assert seen == {torch.bfloat16}
    assert {weights.dtype for weights in trained.model.parameters()} == {torch.float32}


# --- loss -------------------------------------------------------------------------------------------------------------


def test_loss_table_has_a_row_an_epoch() -> None:
    logs = [
        {"loss": 3.0, "epoch": 0.5},
        {"loss": 1.0, "epoch": 1.0},
        {"eval_loss": 1.5, "epoch": 1.0},
        {"loss": 0.5, "epoch": 1.3333333},
        {"loss": 0.25, "epoch": 2.0},
        {"eval_loss": 0.123456, "epoch": 2.0},
        {"loss": 0.1, "epoch": 2.5},  # killed here
        {"train_runtime": 1.0, "epoch": 2.5},
    ]
    table = loss_table(logs)
    assert table.to_dict("list") == {"epoch": [1, 2], "training": [2.0, 0.375], "validation": [1.5, 0.12346]}


@pytest.mark.parametrize("share", [True, False])
def test_validation_loss_is_the_mean_over_tokens(tmp_path: Path, share: bool) -> None:
    """Whatever the batches: answers are of unequal length, so the mean of batches' means would be another number."""
    measured = trainer(tmp_path, batch_size=1, gradient_accumulation=1, train={"share_prefix": share})
    rows = features(tiny.examples(30)[20:], tiny.encoder(), 2048)
    total = tokens = 0.0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        count = sum(label != IGNORED for label in row["labels"])
        total += measured.model(torch.tensor([row["input_ids"]]), labels=labels).loss.item() * count
        tokens += count
    assert measured.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool) -> None:
    stopped = trainer(tmp_path, epochs=3, train={"share_prefix": share})
    compute = type(stopped).compute_loss

    def compute_loss(self: SFTTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        broken = self.model.training and self.state.global_step == 3  # in the second epoch of two steps each
        return compute(self, *args, **kwargs) * (float("nan") if broken else 1.0)

    monkeypatch.setattr(type(stopped), "compute_loss", compute_loss)
    with pytest.raises(InputError, match=r"loss is nan at step 4; the last good checkpoint is .*/checkpoint-2;"):
        stopped.train()


class Spoil(TrainerCallback):
    """Spoils the weights at the start of the fourth epoch."""

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, model: torch.nn.Module, **_: Any) -> None:
        if state.epoch == 3:
            with torch.no_grad():
                for weights in model.parameters():
                    weights.mul_(-1)


def test_the_best_checkpoint_is_what_is_left_and_only_it_and_the_last_are_kept(tmp_path: Path) -> None:
    trained = trainer(tmp_path, epochs=5, lr=1e-3)
    trained.add_callback(Spoil())
    trained.train()
    losses = [log["eval_loss"] for log in trained.state.log_history if "eval_loss" in log]
    assert losses.index(min(losses)) == 2
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"checkpoint-6", "checkpoint-10"}
    assert trained.evaluate()["eval_loss"] == pytest.approx(losses[2], rel=1e-6)


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_lora_is_merged_into_an_ordinary_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.project(tmp_path, epochs=1, train={"lora_rank": 4})
    monkeypatch.chdir(folder)
    runpy.run_path("stages/train.py", run_name="__main__")
    names = {path.name for path in (folder / "models/router").iterdir()}
    assert not {name for name in names if "adapter" in name}
    trained = AutoModelForCausalLM.from_pretrained(folder / "models/router").state_dict()
    assert trained.keys() == tiny.model().state_dict().keys()
    base = tiny.model().state_dict()
    moved = {name for name in base if not torch.equal(base[name], trained[name])}
    assert moved == {name for name in base if "proj" in name}
    name = next(iter(sorted(moved)))
    assert torch.linalg.matrix_rank(trained[name] - base[name], atol=1e-5) <= 4
