"""Packed batches against TRL's own computation on separate rows: `python -m pytest tests/test_prefix_sharing.py`."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import WINDOW
from trl import SFTTrainer

from router import prefix_sharing
from router.prefix_sharing import IGNORED, PADDING, PREFIX, attention_masks, collate_sharing_prefix
from router.training import SharedTrainer, configuration, features, make_trainer, packed_together

Rows = list[dict[str, Any]]


def trainer(folder: Path, share: bool, dtype: torch.dtype = torch.float32, **changes: Any) -> SFTTrainer:
    """A trainer on the same tiny model, examples and parameters, with or without sharing."""
    params = tiny.params(train={"share_prefix": share}, **changes)
    splits = tiny.examples(30), tiny.examples(40)[30:]
    arguments = configuration(params, folder / str(share), params.lr, "fp32")
    return make_trainer(params, tiny.model(dtype), tiny.encoder(), arguments, splits, folder / "loss.csv")


def loss_and_gradient(trainer: SFTTrainer, batches: list[Rows]) -> tuple[float, torch.Tensor]:
    """Of one optimizer step over micro-batches, as Trainer accumulates them; the gradient as one vector."""
    model = trainer.model.train()
    model.zero_grad()
    inputs = [trainer.data_collator(batch) for batch in batches]
    items = trainer._get_num_items_in_batch(inputs, torch.device("cpu"))
    total = 0.0
    for batch in inputs:
        loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
        loss.backward()
        total += loss.item()
    return total, torch.cat([weights.grad.flatten() for weights in model.parameters()]).double()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def rows(count: int) -> Rows:
    return features(tiny.examples(count), tiny.encoder(), 2048)


def rows_of_two_prefixes() -> Rows:
    """In turn with the agents in one order, in the other, and one of them alone: three prefixes, unequal groups."""
    encoders = [tiny.encoder(), tiny.encoder(tiny.AGENTS[::-1]), tiny.encoder(tiny.AGENTS[:1])]
    examples = tiny.examples(13)
    return [features([example], encoders[place % 3], 2048)[0] for place, example in enumerate(examples)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "batch",
    [rows(12), rows(1), rows(7)[-1:], rows_of_two_prefixes()],
    ids=["twelve", "one", "one without a call", "several prefixes"],
)
def test_loss_and_gradient_are_those_of_trl_on_separate_rows(
    tmp_path: Path, batch: Rows, dtype: torch.dtype, tolerance: float
) -> None:
    assert min(row["prefix_length"] for row in batch) > 2 * WINDOW
    plain_loss, plain = loss_and_gradient(trainer(tmp_path, False, dtype), [batch])
    shared_loss, shared = loss_and_gradient(trainer(tmp_path, True, dtype), [batch])
    assert shared_loss == pytest.approx(plain_loss, rel=tolerance)
    assert error(shared, plain) < tolerance


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (4, 4, 4), (7, 5)])
def test_accumulated_micro_batches_are_normalised_as_trl_does(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    batch = rows(12)  # with answers of unequal length, so that a mean of means would differ
    plain_loss, plain = loss_and_gradient(trainer(tmp_path, False), [batch[:4], batch[4:8], batch[8:]])
    remaining = iter(batch)
    packed = [[next(remaining) for _ in range(size)] for size in sizes]
    shared_loss, shared = loss_and_gradient(trainer(tmp_path, True), packed)
    assert shared_loss == pytest.approx(plain_loss, rel=1e-5)
    assert error(shared, plain) < 1e-5


def test_an_ignored_window_gives_a_wrong_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can only see the window if it matters."""
    _, plain = loss_and_gradient(trainer(tmp_path, False), [rows(12)])
    shared = trainer(tmp_path, True)
    masks = attention_masks
    monkeypatch.setattr(prefix_sharing, "attention_masks", lambda *seen: masks(seen[0], seen[1], 10_000))
    assert error(loss_and_gradient(shared, [rows(12)])[1], plain) > 0.01

    def by_place(positions: torch.Tensor, segments: torch.Tensor, window: int) -> dict[str, torch.Tensor]:
        wrong = masks(torch.arange(positions.shape[1])[None].expand_as(positions), segments, window)
        return {**wrong, "full_attention": masks(positions, segments, window)["full_attention"]}

    monkeypatch.setattr(prefix_sharing, "attention_masks", by_place)
    assert error(loss_and_gradient(shared, [rows(12)])[1], plain) > 0.01


def test_packed_rows_hold_every_label_once_and_the_prefix_once() -> None:
    batch = rows_of_two_prefixes()
    packed = collate_sharing_prefix(batch)
    assert {name: value.shape for name, value in packed.items()} == dict.fromkeys(packed, packed["input_ids"].shape)
    assert packed["input_ids"].shape[0] == 3
    wanted = sorted(label for row in batch for label in row["labels"] if label != IGNORED)
    assert sorted(packed["labels"][packed["labels"] != IGNORED].tolist()) == wanted
    suffixes = sum(len(row["input_ids"]) - row["prefix_length"] for row in batch)
    prefixes = sum(row["prefix_length"] for row in batch[:3])
    assert int((packed["segments"] != PADDING).sum()) == suffixes + prefixes
    assert (packed["labels"][packed["segments"] <= PREFIX] == IGNORED).all()


def test_a_suffix_sees_the_prefix_and_itself_by_position() -> None:
    segments = torch.tensor([[PREFIX, PREFIX, 1, 1, 2, PADDING]])
    positions = torch.tensor([[0, 1, 2, 3, 2, 0]])
    masks = attention_masks(positions, segments, window=2)
    seen = {name: [row.nonzero().flatten().tolist() for row in mask[0, 0]] for name, mask in masks.items()}
    assert seen["full_attention"][:5] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]
    assert seen["sliding_attention"][:5] == [[0], [0, 1], [1, 2], [2, 3], [1, 4]]
    assert seen["full_attention"][5], "a row that sees nothing would be no number"


@pytest.mark.parametrize(
    ("batch", "accumulation", "wanted"), [(4, 3, 3), (4, 6, 3), (1, 12, 12), (64, 2, 1), (5, 7, 1)]
)
def test_a_step_is_packed_evenly_into_rows_of_bounded_length(batch: int, accumulation: int, wanted: int) -> None:
    assert packed_together(batch, accumulation) == wanted


def test_a_whole_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    changes = {"epochs": 3, "lr": 3e-3}
    plain, shared = trainer(tmp_path, False, **changes), trainer(tmp_path, True, **changes)
    assert isinstance(shared, SharedTrainer)
    assert (plain.args.train_batch_size, plain.args.gradient_accumulation_steps) == (4, 3)
    assert (shared.args.train_batch_size, shared.args.gradient_accumulation_steps) == (12, 1)
    start = {name: weights.clone() for name, weights in shared.model.state_dict().items()}
    plain.train()
    shared.train()
    wanted = plain.model.state_dict()
    for name, weights in shared.model.state_dict().items():
        torch.testing.assert_close(weights, wanted[name], atol=1e-4, rtol=0, msg=lambda text, name=name: name + text)
    assert max(float((weights - start[name]).abs().max()) for name, weights in wanted.items()) > 5e-3, "hardly trained"
    losses = [
        [log[name] for log in trained.state.log_history for name in ("loss", "eval_loss") if name in log]
        for trained in (plain, shared)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) == 3 * (3 + 1)  # 30 examples, 12 a step
