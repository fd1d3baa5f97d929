"""Builds the embedded base: a miniature Gemma 3 that reads function-calling episodes from a random start.

Each step takes a few episodes. An episode's declarations are computed once and shared by its messages, which are
computed as one batch; so the step costs little more than the messages themselves.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, PreTrainedTokenizerFast

from router.augment import casing, typo
from router.embedded.corpus import Corpus, Episode, episode
from router.encoding import Encoder
from router.examples import DECLINE
from router.functiongemma import DEFAULT_SYSTEM, STOP_TOKENS
from router.params import EmbeddedParams
from router.prefix_sharing import IGNORED, attention_masks, collate_sharing_prefix

MESSAGES = 24
"""Messages of one episode."""
EPISODES = 2
"""Episodes of one step."""
CUTS = 0.03
"""Share of the places inside a message where tokens are kept from merging, so that a word is seen in other parts too.

As BPE dropout does (Provilkov et al., 2020), which `tokenizers` offers with a random source that cannot be seeded.
"""
MESSAGE_WEIGHT = 0.3
"""Weight of predicting the message's own tokens beside those of the answer: that is where words' meanings come from."""
WINDOW = 512
"""Tokens that a sliding-window layer looks back, as in FunctionGemma."""
MAX_MESSAGE = 96
"""Tokens of a message; the few longer ones are cut."""


def new_model(tokenizer: PreTrainedTokenizerFast, params: EmbeddedParams) -> Gemma3ForCausalLM:
    """A Gemma 3 of a few million parameters with random weights (from torch's global seed)."""
    heads = 4
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden,
        intermediate_size=4 * params.hidden,
        num_hidden_layers=params.layers,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=params.hidden // heads,
        query_pre_attn_scalar=params.hidden // heads,
        sliding_window=WINDOW,
        layer_types=["full_attention" if layer % 2 else "sliding_attention" for layer in range(params.layers)],
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = Gemma3ForCausalLM(config)
    stop = [tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS]
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=stop, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def noisy(text: str, rng: random.Random) -> str:
    """`text` as another hand would type it: other case, slips of the finger."""
    if rng.random() < 0.3:
        text = casing(text, rng)
    while rng.random() < 0.25:
        text = typo(text, rng)
    return text


def cut(text: str, rng: random.Random) -> list[str]:
    """`text` in parts, cut at random places."""
    places = [place for place in range(1, len(text)) if rng.random() < CUTS]
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def encoded(tokenizer: PreTrainedTokenizerFast, shown: Episode, rng: random.Random) -> list[dict[str, Any]]:
    """An episode's messages with their answers as token ids, and what predicting each token counts for."""
    encoder = Encoder(tokenizer, shown.agents, DEFAULT_SYSTEM)
    messages = [
        [index for part in cut(noisy(text, rng), rng) for index in encoder.text(part)][:MAX_MESSAGE]
        for text, _ in shown.messages
    ]
    P = len(encoder.prefix)
    examples = []
    for message, (_, call) in zip(messages, shown.messages, strict=True):
        answer = encoder.decline(DECLINE) if call is None else encoder.call(call)
        examples.append(
            {
                "input_ids": [*encoder.prefix, *message, *encoder.turn, *answer],
                "labels": [IGNORED] * P + message + [IGNORED] * len(encoder.turn) + answer,
                "answer_length": len(answer),
                "prefix_length": P,
            }
        )
    return examples


def episode_loss(model: Gemma3ForCausalLM, examples: list[dict[str, Any]]) -> torch.Tensor:
    """Weighted mean cross-entropy of an episode's messages and answers, over one computation of its prefix."""
    batch = collate_sharing_prefix(examples)
    labels, segments = batch["labels"], batch["segments"]
    predicts = labels[:, 1:] != IGNORED  # (1, L - 1)
    hidden = model.model(
        input_ids=batch["input_ids"],
        attention_mask=attention_masks(batch["position_ids"], segments, WINDOW),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    losses = cross_entropy(model.lm_head(hidden[:, :-1][predicts]).float(), labels[:, 1:][predicts], reduction="none")
    is_answer = torch.cat(
        [
            torch.arange(sum(label != IGNORED for label in example["labels"])).flip(0) < example["answer_length"]
            for example in examples
        ]
    )
    weight = torch.where(is_answer, 1.0, MESSAGE_WEIGHT)
    return (losses * weight).sum() / weight.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 2 %, then linear to zero."""
    warm = max(1, steps // 50)
    return peak * min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def episodes(corpus: Corpus, seed: int, first_step: int) -> Iterator[tuple[Episode, random.Random]]:
    """The episodes from a step on; each depends on the seed and its number alone, so that training can be resumed."""
    number = first_step * EPISODES
    while True:
        rng = random.Random(f"{seed}/{number}")
        yield episode(corpus, rng, MESSAGES), rng
        number += 1


def new_optimizer(model: Gemma3ForCausalLM, peak: float) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def train_step(
    model: Gemma3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerFast,
    source: Iterator[tuple[Episode, random.Random]],
    lr: float,
) -> float:
    """One optimizer step on the next episodes; returns the mean loss, in nats a token."""
    total = 0.0
    for _ in range(EPISODES):
        examples = encoded(tokenizer, *next(source))
        # Weights stay in fp32; the products in 16 bit take about two thirds of the time where the processor has them.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = episode_loss(model, examples) / EPISODES
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def save(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Transformers checkpoint with 16-bit weights."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
