"""Constrained decoding over a shared, cached prompt: few forward passes, exact probabilities. No files, no DVC.

The prompt's keys and values are computed once. A message then costs one pass over its own tokens and the forced start of
a call, at whose end the choice of the agent stands, and one short pass for each further choice. Forced tokens are
never predicted, and at a choice only the rows of the LM head that are allowed are multiplied.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import linear, log_softmax
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from router.grammar import Grammar, Leaf, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "shared_prefix"


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    prefix: "list[tuple[torch.Tensor, torch.Tensor]] | None" = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a batch of rows to one prefix that they share, and each to its own keys. Ordinary without a prefix.

    The prefix is never repeated along the batch or the query heads: all rows' queries meet it in one product.

    Args:
        query: (B, heads, T, D)
        key, value: (B, key heads, S, D), the rows' own, cached ones included
        attention_mask: (B, 1, T, P + S), true where a query may look
        prefix: for each layer keys and values of shape (key heads, P, D)
    """
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    assert attention_mask is not None and scaling is not None
    prefix_keys, prefix_values = prefix[module.layer_idx]  # type: ignore[index]
    B, H, T, D = query.shape
    K, P = prefix_keys.shape[:2]
    G = H // K  # query heads of one key head
    query = query.reshape(B, K, G * T, D) * scaling
    folded = query.transpose(0, 1).reshape(K, B * G * T, D)
    shared = (folded @ prefix_keys.transpose(1, 2)).view(K, B, G * T, P).transpose(0, 1)
    scores = torch.cat([shared, query @ key.transpose(2, 3)], dim=-1)  # (B, K, G * T, P + S)
    # The lowest number rather than minus infinity: padding sees nothing, and must not become NaN.
    hidden = ~attention_mask.repeat(1, 1, G, 1)
    weights = scores.float().masked_fill(hidden, torch.finfo(torch.float32).min).softmax(dim=-1).to(query.dtype)
    to_prefix = weights[..., :P].transpose(0, 1).reshape(K, B * G * T, P)
    output = (to_prefix @ prefix_values).view(K, B, G * T, D).transpose(0, 1) + weights[..., P:] @ value
    return output.reshape(B, H, T, D).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass
class Decoded:
    """What decoding one message found."""

    tokens: list[int] = field(default_factory=list)
    """The call, without the closing tokens that are forced."""
    agents: dict[str, float] = field(default_factory=dict)
    """Log-probability of every agent, and of "" for none: they sum to 1 as probabilities."""
    decisions: list[tuple[str, float]] = field(default_factory=list)
    """What each choice after the agent decided (see `State.decides`), and the log-probability of what was chosen."""


class Rows:
    """A batch in flight: the keys, positions and validity of what each row has seen beyond the prefix."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.cache = DynamicCache()  # without the model's configuration: sliding layers must keep every slot
        self.positions = torch.zeros(size, 0, dtype=torch.long, device=device)  # (B, S)
        self.valid = torch.zeros(size, 0, dtype=torch.bool, device=device)  # (B, S)

    def select(self, rows: list[int], kept: Sequence[int] | None = None) -> None:
        """Go on with these rows only, in this order; of each keep the first `kept` valid tokens."""
        index = torch.tensor(rows, device=self.positions.device)
        self.cache.batch_select_indices(index)
        self.positions, self.valid = self.positions[index], self.valid[index]
        if kept is not None:
            length = torch.tensor(kept, device=index.device)
            self.valid &= self.valid.cumsum(dim=1) <= length[:, None]


class Decoder:
    """Decodes messages that follow one prefix, under one grammar."""

    def __init__(self, model: "PreTrainedModel", grammar: Grammar, prefix: Sequence[int], turn: Sequence[int]) -> None:
        self.model, self.grammar, self.turn = model, grammar, list(turn)
        self.device = model.device
        model.set_attn_implementation(ATTENTION)
        self.window: int = model.config.sliding_window
        self.head: torch.Tensor = model.get_output_embeddings().weight  # (V, hidden)
        self.prefix_length = len(prefix)
        self.prefix = self._compute_prefix(prefix)
        # A row for every way to an open choice of agent that is not the beginning of a longer way: mostly one.
        ways = [path for path, _ in grammar.agent_choices]
        self.paths = [path for path in ways if not any(path == longer[: len(path)] != longer for longer in ways)]
        self.text_tokens = torch.tensor(grammar.text_tokens, device=self.device)

    @torch.inference_mode()
    def _compute_prefix(self, prefix: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        cache = DynamicCache()
        ids = torch.tensor([prefix], device=self.device)
        self.model.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    def _forward(self, rows: Rows, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append tokens to each row (right-padded to one length) and return their last hidden states, (B, T, hidden)."""
        T = max(len(ids) for ids in tokens)
        ids = torch.tensor([[*row, *[0] * (T - len(row))] for row in tokens], device=self.device)
        lengths = torch.tensor([len(row) for row in tokens], device=self.device)
        steps = torch.arange(T, device=self.device)
        seen = rows.valid.sum(dim=1)
        positions = self.prefix_length + seen[:, None] + steps  # (B, T)
        rows.positions = torch.cat([rows.positions, positions], dim=1)
        rows.valid = torch.cat([rows.valid, steps < lengths[:, None]], dim=1)
        # By logical position, not by slot: rows of different lengths leave holes between their tokens.
        distance = positions[:, :, None] - rows.positions[:, None, :]  # (B, T, S)
        own = (distance >= 0) & rows.valid[:, None, :]
        prefix_distance = positions[:, :, None] - torch.arange(self.prefix_length, device=self.device)  # (B, T, P)
        full = torch.cat([torch.ones_like(prefix_distance, dtype=torch.bool), own], dim=-1)
        near = torch.cat([prefix_distance < self.window, own & (distance < self.window)], dim=-1)
        output = self.model.model(
            input_ids=ids,
            attention_mask={"full_attention": full[:, None], "sliding_attention": near[:, None]},
            position_ids=positions,
            past_key_values=rows.cache,
            use_cache=True,
            prefix=self.prefix,
        )
        return output.last_hidden_state

    def _log_probabilities(self, hidden: torch.Tensor, states: Sequence[State]) -> list[dict[int, float]]:
        """Log-probability of each token that may come next, renormalised over these tokens.

        Args:
            hidden: (N, hidden)
            states: N choices
        """
        results: list[dict[int, float]] = [{} for _ in states]
        groups: dict[int, list[int]] = {}
        for row, state in enumerate(states):
            groups.setdefault(id(state), []).append(row)
        for members in groups.values():
            state = states[members[0]]
            tokens = torch.tensor(list(state.edges), device=self.device)
            if state.text is not None:
                tokens = torch.cat([tokens, self.text_tokens])
            logits = linear(hidden[members], self.head[tokens]).float()
            names = tokens.tolist()
            for row, values in zip(members, log_softmax(logits, dim=-1).tolist(), strict=True):
                results[row] = dict(zip(names, values, strict=True))
        return results

    @torch.inference_mode()
    def decode(self, messages: Sequence[Sequence[int]]) -> list[Decoded]:
        """The best call for each message, given as token ids, with the probabilities of its choices."""
        starts = [[*message, *self.turn] for message in messages]
        rows = Rows(len(starts) * len(self.paths), self.device)
        hidden = self._forward(rows, [[*start, *path] for start in starts for path in self.paths])
        results, leaves = self._score_agents(hidden, [len(start) for start in starts])

        # Go on behind each message's best agent, with the row that has seen most of the way there.
        chosen, kept, pending, states = [], [], [], []
        for number, (result, leaf) in enumerate(zip(results, leaves, strict=True)):
            shared = [_common(leaf.path, path) for path in self.paths]
            best = max(range(len(shared)), key=shared.__getitem__)
            chosen.append(number * len(self.paths) + best)
            kept.append(len(starts[number]) + shared[best])
            forced, state = leaf.state.forced()
            result.tokens += [*leaf.path, *forced]
            pending.append(result.tokens[shared[best] :])
            states.append(state)
        rows.select(chosen, kept)

        active = list(range(len(messages)))
        while True:
            unfinished = [place for place, state in enumerate(states) if state.is_choice]
            if not unfinished:
                return results
            if len(unfinished) < len(active):
                rows.select(unfinished)
                active, pending, states = (
                    [items[place] for place in unfinished] for items in (active, pending, states)
                )
            hidden = self._forward(rows, pending)
            last = hidden[range(len(active)), [len(tokens) - 1 for tokens in pending]]
            for place, options in enumerate(self._log_probabilities(last, states)):
                token = max(options, key=options.__getitem__)
                result, state = results[active[place]], states[place]
                result.decisions.append((state.decides, options[token]))
                after = state.edges.get(token, state.text)
                assert after is not None
                forced, states[place] = after.forced()
                pending[place] = [token, *forced]
                result.tokens += pending[place]

    def _score_agents(self, hidden: torch.Tensor, lengths: Sequence[int]) -> tuple[list[Decoded], list[Leaf]]:
        """The probability of every agent for each message, and the way to the best one.

        Args:
            hidden: (messages * paths, T, hidden)
            lengths: of each message with the turn behind it, in tokens
        """
        choices = self.grammar.agent_choices
        rows, steps = [], []
        for number, length in enumerate(lengths):
            for way, _ in choices:
                path = next(i for i, path in enumerate(self.paths) if path[: len(way)] == way)
                rows.append(number * len(self.paths) + path)
                steps.append(length + len(way) - 1)
        options = self._log_probabilities(hidden[rows, steps], [state for _ in lengths for _, state in choices])
        results, best = [], []
        for number in range(len(lengths)):
            here = options[number * len(choices) :]
            scores = [sum(here[choice][token] for choice, token in leaf.taken) for leaf in self.grammar.leaves]
            agents: dict[str, float] = {}
            for leaf, score in zip(self.grammar.leaves, scores, strict=True):
                agents[leaf.owner] = float(np.logaddexp(agents.get(leaf.owner, -math.inf), score))
            results.append(Decoded(agents=agents))
            best_agent = max((name for name in agents if name), key=agents.__getitem__)
            best.append(
                max(
                    (
                        (score, leaf)
                        for score, leaf in zip(scores, self.grammar.leaves, strict=True)
                        if leaf.owner == best_agent
                    ),
                    key=lambda pair: pair[0],
                )[1]
            )
        return results, best

    @torch.inference_mode()
    def generate(self, messages: Sequence[Sequence[int]], stop: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Greedy generation without the grammar, over the whole vocabulary, without the token that stopped it."""
        answers: list[list[int]] = [[] for _ in messages]
        active = list(range(len(messages)))
        rows = Rows(len(messages), self.device)
        pending = [[*message, *self.turn] for message in messages]
        for _ in range(max_new_tokens):
            hidden = self._forward(rows, pending)
            last = hidden[range(len(active)), [len(tokens) - 1 for tokens in pending]]
            chosen = linear(last, self.head).argmax(dim=-1).tolist()
            going = [place for place, token in enumerate(chosen) if token not in stop]
            for place in going:
                answers[active[place]].append(chosen[place])
            if not going:
                break
            if len(going) < len(active):
                rows.select(going)
            active, pending = [active[place] for place in going], [[chosen[place]] for place in going]
        return answers


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    for count, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return count
    return min(len(left), len(right))
