"""Training batches that compute the shared prompt once. Knows nothing of evaluation.

Every example begins with the same prefix (system message and declarations), and under causal attention its hidden
states do not depend on what follows. So examples with one prefix are packed into one row

    prefix  suffix 1  suffix 2  ...

where every suffix sees the prefix and itself, at the positions that it would have alone. Loss and gradients are those
of separate rows; the work is a fraction. The LM head is applied only where a label stands: TRL's own head skips
unlabelled positions on GPUs only, and with 262,144 rows it costs more than the network on all others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

IGNORED = -100
"""Label of a token that is not trained on."""
PREFIX, PADDING = 0, -1
"""Segments of a packed row beside the suffixes 1, 2, ..."""


def collate_sharing_prefix(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pack examples of one prefix into one row; examples with other prefixes get rows of their own.

    Args:
        examples: with input_ids, labels (both of one length) and prefix_length, the count of first tokens to share

    Returns:
        input_ids, labels, position_ids and segments, each of shape (distinct prefixes, longest row).
    """
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for example in examples:
        groups.setdefault(tuple(example["input_ids"][: example["prefix_length"]]), []).append(example)
    rows = []
    for prefix, members in groups.items():
        P = len(prefix)
        row = {
            "input_ids": list(prefix),
            "labels": [IGNORED] * P,
            "position_ids": list(range(P)),
            "segments": [PREFIX] * P,
        }
        for number, example in enumerate(members, start=1):
            length = len(example["input_ids"])
            row["input_ids"] += example["input_ids"][P:]
            row["labels"] += example["labels"][P:]
            row["position_ids"] += range(P, length)
            row["segments"] += [number] * (length - P)
        rows.append(row)
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "segments": PADDING}
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def attention_masks(positions: torch.Tensor, segments: torch.Tensor, window: int) -> dict[str, torch.Tensor]:
    """Who sees whom, for full and for sliding-window layers, true where a query may look.

    The window counts logical positions, not places in the row: a suffix far along the row is still close to the prefix.

    Args:
        positions, segments: (R, L)

    Returns:
        masks of shape (R, 1, L, L)
    """
    query, key = segments[:, :, None], segments[:, None, :]
    distance = positions[:, :, None] - positions[:, None, :]  # (R, L, L)
    full = ((key == query) | (key == PREFIX)) & (distance >= 0)
    sliding = full & (distance < window)
    return {"full_attention": full[:, None], "sliding_attention": sliding[:, None]}


class PrefixSharingTrainer(SFTTrainer):
    """TRL's trainer on batches of `collate_sharing_prefix`: same loss, normalised in the same way."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        config = self.accelerator.unwrap_model(model).config
        # Eager attention would add a mask of true and false to its scores, without an error.
        assert config._attn_implementation == "sdpa", config._attn_implementation
        labels = inputs["labels"]
        predicts = torch.zeros_like(labels, dtype=torch.bool)  # the token before each label
        predicts[:, :-1] = labels[:, 1:] != IGNORED
        # Through `model(...)`, not its inner modules: accelerate wraps autocast around the outer forward only.
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=attention_masks(inputs["position_ids"], inputs["segments"], config.sliding_window),
            position_ids=inputs["position_ids"],
            logits_to_keep=predicts,
            use_cache=False,
        )
        targets = labels[:, 1:][predicts[:, :-1]]
        logits = output.logits.reshape(len(targets), -1).float()
        if num_items_in_batch is None:
            return cross_entropy(logits, targets)
        # The items of all processes are counted, and their gradients averaged: as in TRL's own compute_loss.
        total = cross_entropy(logits, targets, reduction="sum")
        return total / num_items_in_batch * float(self.accelerator.num_processes)
