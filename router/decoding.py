"""Constrained decoding over a shared, cached prompt: few forward passes, exact probabilities. No files, no DVC.

The prompt's keys and values are computed once. A message then costs one pass over its own tokens and the forced start
of a call, at whose end the choice of the agent stands, and one short pass for each further choice. Forced tokens are
never predicted, and at a choice only the rows of the LM head that are allowed are multiplied.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import linear, log_softmax, scaled_dot_product_attention
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
    prefix: "Sequence[tuple[torch.Tensor, torch.Tensor]] | None" = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a batch of rows to one prefix that they share, and each to its own keys. Ordinary without a prefix.

    Args:
        query: (B, heads, T, D)
        key, value: (B, key heads, S, D), the rows' own, cached ones included
        attention_mask: (B, 1, T, P + S), added to the scores
        prefix: for each layer keys and values of shape (key heads, P, D)
    """
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    heads = query.shape[1]

    def behind(shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)  # (B, key heads, P + S, D)
        # Each key head serves several query heads; with one key head, as in Gemma's small models, nothing is copied.
        return joined[:, :, None].expand(-1, -1, heads // joined.shape[1], -1, -1).flatten(1, 2)

    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = (behind(*pair) for pair in zip(prefix[layer], (key, value), strict=True))
    output = scaled_dot_product_attention(query, keys, values, attn_mask=attention_mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


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
    """What each choice within the agent decided (see `State.decides`), and the log-probability of what was chosen."""


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
        self.near_prefix = max(0, len(prefix) - self.window + 1)
        """First token of the prefix that is in the window of the token behind it."""
        self.prefix = self._compute_prefix(prefix)
        # A row for every way to an open choice of agent that is not the beginning of a longer way: mostly one.
        ways = [path for path, _ in grammar.agent_choices]
        self.paths = [path for path in ways if not any(path == longer[: len(path)] != longer for longer in ways)]
        self.text_tokens = torch.tensor(grammar.text_tokens, device=self.device)

    @torch.inference_mode()
    def _compute_prefix(self, prefix: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer, (key heads, P, D); of sliding layers only those ever in the window."""
        cache = DynamicCache()
        self.model.model(input_ids=torch.tensor([prefix], device=self.device), past_key_values=cache, use_cache=True)
        first = {"full_attention": 0, "sliding_attention": self.near_prefix}
        starts = [first[layer_type] for layer_type in self.model.config.layer_types]
        layers: list[Any] = cache.layers
        return [
            (layer.keys[0, :, start:].clone(), layer.values[0, :, start:].clone())
            for layer, start in zip(layers, starts, strict=True)
        ]

    def _forward(self, rows: Rows, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append tokens to each row, right-padded to one length; returns their last hidden states, (B, T, hidden)."""
        T = max(len(ids) for ids in tokens)
        ids = torch.tensor([[*row, *[0] * (T - len(row))] for row in tokens], device=self.device)
        lengths = torch.tensor([len(row) for row in tokens], device=self.device)
        steps = torch.arange(T, device=self.device)
        seen = rows.valid.sum(dim=1)
        positions = self.prefix_length + seen[:, None] + steps  # (B, T)
        rows.positions = torch.cat([rows.positions, positions], dim=1)
        rows.valid = torch.cat([rows.valid, steps < lengths[:, None]], dim=1)
        hidden: torch.Tensor = self.model.model(
            input_ids=ids,
            attention_mask=self._masks(rows, positions),
            position_ids=positions,
            past_key_values=rows.cache,
            use_cache=True,
            prefix=self.prefix,
        ).last_hidden_state
        return hidden

    def _masks(self, rows: Rows, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Where queries at `positions`, (B, T), may look, by kind of layer: (B, 1, T, P + S), added to the scores."""
        # By logical position, not by slot: rows of different lengths leave holes between their tokens.
        distance = positions[:, :, None] - rows.positions[:, None, :]  # (B, T, S)
        own = (distance >= 0) & rows.valid[:, None, :]
        in_prefix = torch.arange(self.near_prefix, self.prefix_length, device=self.device)
        visible = {
            "full_attention": torch.cat([own.new_ones(*positions.shape, self.prefix_length), own], dim=-1),
            "sliding_attention": torch.cat(
                [positions[:, :, None] - in_prefix < self.window, own & (distance < self.window)], dim=-1
            ),
        }
        # The lowest number rather than minus infinity: padding may see nothing, and must not become NaN.
        zero, lowest = self.head.new_tensor([0.0, torch.finfo(self.head.dtype).min])
        return {kind: torch.where(mask, zero, lowest)[:, None] for kind, mask in visible.items()}

    def _log_probabilities(self, hidden: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """The n tokens that may come next, (n,), and their log-probabilities renormalised over them, (N, n).

        Args:
            hidden: (N, hidden)
        """
        tokens = torch.tensor(list(state.edges), device=self.device)
        if state.text is None:
            logits = linear(hidden, self.head[tokens])
        else:  # Nearly all rows of the head: cheaper to use it whole than to copy them.
            tokens = torch.cat([tokens, self.text_tokens])
            logits = linear(hidden, self.head)[:, tokens]
        return tokens, log_softmax(logits.float(), dim=-1)

    def _choose(self, hidden: torch.Tensor, states: Sequence[State]) -> list[tuple[int, float]]:
        """The likeliest token at each of N choices, and its log-probability. `hidden`: (N, hidden)."""
        groups: dict[int, list[int]] = {}
        for row, state in enumerate(states):
            groups.setdefault(id(state), []).append(row)
        chosen: dict[int, tuple[int, float]] = {}
        for members in groups.values():
            tokens, scores = self._log_probabilities(hidden[members], states[members[0]])
            best = scores.max(dim=-1)
            found = zip(tokens[best.indices].tolist(), best.values.tolist(), strict=True)
            chosen.update(zip(members, found, strict=True))
        return [chosen[row] for row in range(len(states))]

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
                active = [active[place] for place in unfinished]
                pending = [pending[place] for place in unfinished]
                states = [states[place] for place in unfinished]
            hidden = self._forward(rows, pending)
            last = hidden[range(len(active)), [len(tokens) - 1 for tokens in pending]]
            for place, (token, score) in enumerate(self._choose(last, states)):
                result, state = results[active[place]], states[place]
                result.decisions.append((state.decides, score))
                after = state.edges.get(token, state.text)
                assert after is not None
                forced, states[place] = after.forced()
                pending[place] = [token, *forced]
                result.tokens += pending[place]

    def _score_agents(self, hidden: torch.Tensor, lengths: Sequence[int]) -> tuple[list[Decoded], list[Leaf]]:
        """The probability of every agent for each message, and the likeliest way to the best one.

        Args:
            hidden: (messages * paths, T, hidden)
            lengths: of each message with the turn behind it, in tokens
        """
        scores: list[dict[int, torch.Tensor]] = []  # for each choice, by token: (messages,)
        for way, state in self.grammar.agent_choices:
            path = next(number for number, path in enumerate(self.paths) if path[: len(way)] == way)
            rows = range(path, len(hidden), len(self.paths))
            steps = [length + len(way) - 1 for length in lengths]
            tokens, choice = self._log_probabilities(hidden[rows, steps], state)
            scores.append(dict(zip(tokens.tolist(), choice.T, strict=True)))
        leaves = self.grammar.leaves
        ways = [torch.stack([scores[choice][token] for choice, token in leaf.taken]).sum(dim=0) for leaf in leaves]
        results, best = [], []
        for message in torch.stack(ways, dim=1).tolist():
            agents: dict[str, float] = {}
            for leaf, score in zip(leaves, message, strict=True):
                agents[leaf.owner] = float(np.logaddexp(agents.get(leaf.owner, -math.inf), score))
            agent = max((name for name in agents if name), key=agents.__getitem__)
            score, place = max((message[place], place) for place, leaf in enumerate(leaves) if leaf.owner == agent)
            result = Decoded(agents=agents)
            if score < agents[agent]:  # its name goes on in several ways, as "f{" and "f{}"
                result.decisions.append(("", score - agents[agent]))
            results.append(result)
            best.append(leaves[place])
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
