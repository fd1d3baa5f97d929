"""Constrained decoding over a shared, cached prompt: few forward passes, exact probabilities. No files, no DVC.

The prompt's keys and values are computed once. A message then costs one pass over its own tokens and the forced start
of a call, at whose end the choice of the agent stands, and one short pass for each further choice. Forced tokens are
never predicted, and at a choice only the rows of the LM head that are allowed are multiplied.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn.functional import linear, log_softmax, pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from router.grammar import Grammar, Leaf, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "shared_prefix"
Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values."""


def seen_by_rows(
    module: torch.nn.Module,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: Sequence[Pair],
    own: torch.Tensor,
    new: list[torch.Tensor],
) -> Pair:
    """All that the rows see in an attention layer: prefix, own and these tokens', each (B, key heads, P + S + T, D).

    Args:
        key, value: these tokens', (B, key heads, T, D)
        prefix, own: see `Step`
        new: takes in these tokens' as (2, B, key heads, T, D)
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    new.append(torch.stack([key, value]))
    keys, values = (
        torch.cat([shared.expand(len(added), -1, -1, -1), seen, added], dim=2)
        for shared, seen, added in zip(prefix[layer], own[layer], (key, value), strict=True)
    )
    return keys, values


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a batch of rows to one prefix that they share, and each to its own keys. Ordinary without a prefix.

    Args:
        query: (B, heads, T, D)
        attention_mask: (B, 1, T, P + S + T), added to the scores
        key, value, kwargs: as for `seen_by_rows`
    """
    if "prefix" not in kwargs:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    # Each key head serves several query heads; with one key head, as in Gemma's small models, nothing is copied.
    keys, values = (
        every[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)
        for every in seen_by_rows(module, key, value, kwargs["prefix"], kwargs["own"], kwargs["new"])
    )
    output = scaled_dot_product_attention(query, keys, values, attn_mask=attention_mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Step(Protocol):
    """The network as the decoder sees it: appends T tokens to each of B rows, which all follow one prefix."""

    def __call__(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        masks: dict[str, torch.Tensor],
        prefix: Sequence[Pair],
        own: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states, (B, T, hidden), and `own` with these tokens, (layers, 2, B, key heads, S + T, D).

        Args:
            embeddings: (B, T, hidden)
            positions: (B, T)
            masks: by kind of layer (B, 1, T, P + S + T), added to the scores
            prefix: for each layer the keys and values of the prefix, (key heads, P, D); P differs by kind of layer
            own: the keys and values of what the rows have seen beyond the prefix, (layers, 2, B, key heads, S, D)
        """


class TorchStep(torch.nn.Module):
    """`Step` in PyTorch."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        model.set_attn_implementation(ATTENTION)
        self.trunk = model.model

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        masks: dict[str, torch.Tensor],
        prefix: Sequence[Pair],
        own: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new: list[torch.Tensor] = []
        hidden: torch.Tensor = self.trunk(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=masks,
            use_cache=False,
            prefix=prefix,
            own=own,
            new=new,
        ).last_hidden_state
        return hidden, torch.cat([own, torch.stack(new)], dim=-2)


@dataclass
class Decoded:
    """What decoding one message found."""

    tokens: list[int] = field(default_factory=list)
    """The call, without the closing tokens that are forced."""
    agents: dict[str, float] = field(default_factory=dict)
    """Log-probability of every agent, and of "" for none: they sum to 1 as probabilities."""
    decisions: list[tuple[str, float]] = field(default_factory=list)
    """What each choice within the agent decided (see `State.decides`), and the log-probability of what was chosen."""


@dataclass(frozen=True)
class Prefix:
    """What all messages follow: its keys and values, computed once."""

    layers: list[Pair]
    """Of each layer, (key heads, P, D); of sliding layers only those ever in the window of what follows."""
    length: int = 0
    near: int = 0
    """Its first token that is in the window of the token behind it."""


class Rows:
    """A batch in flight: the keys and values, positions and validity of what each row has seen beyond the prefix."""

    def __init__(self, size: int, nothing: torch.Tensor) -> None:
        self.own = nothing.expand(-1, -1, size, -1, -1, -1)  # (layers, 2, B, key heads, S, D)
        self.positions = torch.zeros(size, 0, dtype=torch.long, device=nothing.device)  # (B, S)
        self.valid = torch.zeros(size, 0, dtype=torch.bool, device=nothing.device)  # (B, S)

    def select(self, rows: list[int], kept: Sequence[int] | None = None) -> None:
        """Go on with these rows only, in this order; of each keep the first `kept` valid tokens."""
        index = torch.tensor(rows, device=self.positions.device)
        self.own, self.positions, self.valid = self.own[:, :, index], self.positions[index], self.valid[index]
        if kept is not None:
            length = torch.tensor(kept, device=index.device)
            self.valid &= self.valid.cumsum(dim=1) <= length[:, None]


class Decoder:
    """Decodes messages that follow one prefix, under one grammar."""

    def __init__(
        self, model: "PreTrainedModel", step: Step, grammar: Grammar, prefix: Sequence[int], turn: Sequence[int]
    ) -> None:
        self.step, self.grammar, self.turn = step, grammar, list(turn)
        self.device = model.device
        config = model.config
        self.window: int = config.sliding_window
        self.embed = model.get_input_embeddings()
        self.head: torch.Tensor = model.get_output_embeddings().weight  # (V, hidden)
        shape = (config.num_hidden_layers, 2, 1, config.num_key_value_heads, 0, config.head_dim)
        self.nothing = self.head.new_zeros(shape)
        """The keys and values of a row that has seen nothing."""
        self.prefix = Prefix([(keys[0], values[0]) for keys, values in self.nothing])
        self.prefix = self._compute_prefix(prefix, config.layer_types)
        # A row for every way to an open choice of agent that is not the beginning of a longer way: mostly one.
        ways = [path for path, _ in grammar.agent_choices]
        self.paths = [path for path in ways if not any(path == longer[: len(path)] != longer for longer in ways)]
        self.text_tokens = torch.tensor(grammar.text_tokens, device=self.device)

    @torch.inference_mode()
    def _compute_prefix(self, ids: Sequence[int], layer_types: Sequence[str]) -> Prefix:
        rows = Rows(1, self.nothing)
        self._forward(rows, [ids])
        near = max(0, len(ids) - self.window + 1)
        first = {"full_attention": 0, "sliding_attention": near}
        layers = [
            (keys[0, :, first[kind] :].clone(), values[0, :, first[kind] :].clone())
            for (keys, values), kind in zip(rows.own, layer_types, strict=True)
        ]
        return Prefix(layers, len(ids), near)

    def _forward(self, rows: Rows, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append tokens to each row, right-padded to one length; returns their last hidden states, (B, T, hidden)."""
        T = max(len(ids) for ids in tokens)
        ids = torch.tensor([[*row, *[0] * (T - len(row))] for row in tokens], device=self.device)
        lengths = torch.tensor([len(row) for row in tokens], device=self.device)
        steps = torch.arange(T, device=self.device)
        seen = rows.valid.sum(dim=1)
        positions = self.prefix.length + seen[:, None] + steps  # (B, T)
        rows.positions = torch.cat([rows.positions, positions], dim=1)
        rows.valid = torch.cat([rows.valid, steps < lengths[:, None]], dim=1)
        masks = self._masks(rows, positions)
        hidden, rows.own = self.step(self.embed(ids), positions, masks, self.prefix.layers, rows.own)
        return hidden

    def _masks(self, rows: Rows, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Where queries at `positions`, (B, T), may look, by kind of layer: (B, 1, T, P + S), added to the scores."""
        # By logical position, not by slot: rows of different lengths leave holes between their tokens.
        distance = positions[:, :, None] - rows.positions[:, None, :]  # (B, T, S)
        own = (distance >= 0) & rows.valid[:, None, :]
        in_prefix = torch.arange(self.prefix.near, self.prefix.length, device=self.device)
        near = in_prefix > positions[:, :, None] - self.window
        # The lowest number rather than minus infinity: padding may see nothing, and must not become NaN.
        zero, lowest = self.head.new_tensor([0.0, torch.finfo(self.head.dtype).min])
        full = pad(torch.where(own, zero, lowest), (self.prefix.length, 0))  # the whole prefix is seen
        sliding = torch.where(torch.cat([near, own & (distance < self.window)], dim=-1), zero, lowest)
        return {"full_attention": full[:, None], "sliding_attention": sliding[:, None]}

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
        rows = Rows(len(starts) * len(self.paths), self.nothing)
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
        rows = Rows(len(messages), self.nothing)
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
