"""Builds the embedded base: a miniature Gemma 3 that learns from a random start what customers' messages mean.

Its word vectors already name what messages are about (see `meanings`), and its attention begins as a mean: from random
weights it took no notice of the messages for tens of thousands of examples. First it reads messages alone and fills in
the form on each: short rows, many of them, from which it learns which words mean the same. Then it answers each by a
call without any declaration. Then it also reads episodes, whose declarations it must choose from; an episode's prompt
is computed once and shared by its messages.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, PreTrainedTokenizerFast

from router.augment import casing, typo
from router.embedded.corpus import Corpus, Episode, Tool, Utterance, episode, one_message, undeclared
from router.embedded.meanings import Form
from router.encoding import Encoder
from router.examples import DECLINE
from router.functiongemma import DEFAULT_SYSTEM, STOP_TOKENS, Call
from router.params import EmbeddedParams
from router.prefix_sharing import IGNORED, PADDING, attention_masks, collate_sharing_prefix

FAINT = 0.1
"""What a norm multiplies by at first where little shall come through."""
WIDENING = 2
"""How much wider the feed-forward layers are than the others."""
FILING = 0.15
"""Share of the steps that fill in forms."""
ANSWERING = 0.4
"""Share of the steps after them that answer messages alone; of the last ones every second reads an episode."""
FORMS = 128
"""Messages that a process files in one step."""
ANSWERS = 64
"""Messages that a process answers in one step, which takes about as long."""
MESSAGES = 24
"""Messages of an episode, of which each process gets one a step."""
CUTS = 0.03
"""Share of the places inside a message where tokens are kept from merging, so that a word is seen in other parts too.

As BPE dropout does (Provilkov et al., 2020), which `tokenizers` offers with a random source that cannot be seeded.
"""
LEFT_OUT = 0.15
"""Share of the words left out of half of the messages, so that no single word decides."""
WINDOW = 128
"""Tokens that a layer looks back: a message and its answer. As in FunctionGemma the first five of six layers are such,
so all of these. What stands further up in a prompt comes through the layers in between. With a window as wide as the
prompt, what was read of messages alone was lost among the declarations (see LOG.md)."""
MAX_MESSAGE = 96
"""Tokens of a message; the few longer ones are cut."""


def new_model(
    tokenizer: PreTrainedTokenizerFast, params: EmbeddedParams, vectors: torch.Tensor | None = None
) -> Gemma3ForCausalLM:
    """A Gemma 3 of a few million parameters: random weights (from torch's global seed) around given word vectors.

    Args:
        vectors: of every token, (vocabulary, hidden); None for random ones
    """
    heads = 4
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden,
        intermediate_size=WIDENING * params.hidden,
        num_hidden_layers=params.layers,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=params.hidden // params.layers,
        query_pre_attn_scalar=params.hidden // params.layers,
        sliding_window=WINDOW,
        layer_types=["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(params.layers)],
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = Gemma3ForCausalLM(config)
    if vectors is not None:
        model.model.embed_tokens.weight.data.copy_(vectors)
    _begin_as_means(model)
    stop = [tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS]
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=stop, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


@torch.no_grad()
def _begin_as_means(model: Gemma3ForCausalLM) -> None:
    """Let every token begin with the mean of the word vectors that it sees, which is what a message is about.

    Each layer carries a part of the vectors over, as wide as its one key head: together they carry all. Its
    feed-forward part says little at first. The head is the word vectors too: it names fitting words from the start.
    """
    width: int = model.config.head_dim
    for number, layer in enumerate(model.model.layers):
        part = torch.eye(model.config.hidden_size)[number * width : (number + 1) * width]  # (width, hidden)
        attention = layer.self_attn
        attention.v_proj.weight.copy_(part)
        attention.o_proj.weight.copy_(part.T.repeat(1, model.config.num_attention_heads))
        attention.q_norm.weight.fill_(FAINT - 1)  # Gemma's norms multiply by 1 + weight
        layer.post_feedforward_layernorm.weight.fill_(FAINT - 1)


def noisy(text: str, rng: random.Random) -> str:
    """`text` as another hand would type it: words left out, other case, slips of the finger."""
    words = text.split(" ")
    if len(words) > 4 and rng.random() < 0.5:
        text = " ".join(word for word in words if rng.random() > LEFT_OUT) or text
    if rng.random() < 0.3:
        text = casing(text, rng)
    while rng.random() < 0.25:
        text = typo(text, rng)
    return text


def cut(text: str, rng: random.Random) -> list[str]:
    """`text` in parts, cut at random places."""
    places = [place for place in range(1, len(text)) if rng.random() < CUTS]
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def message_ids(encoder: Encoder, text: str, rng: random.Random) -> list[int]:
    """A message as another hand would type it and as other parts of words."""
    return [index for part in cut(noisy(text, rng), rng) for index in encoder.text(part)][:MAX_MESSAGE]


def prompt_ids(encoder: Encoder, text: str, rng: random.Random) -> list[int]:
    return [*encoder.prefix, *message_ids(encoder, text, rng), *encoder.turn]


def example(encoder: Encoder, prompt: list[int], answer: list[int]) -> dict[str, Any]:
    """A prompt with its answer, which may be empty, for `collate_sharing_prefix`."""
    labels = [IGNORED] * len(prompt) + answer
    return {"input_ids": prompt + answer, "labels": labels, "prefix_length": len(encoder.prefix)}


def answer_ids(encoder: Encoder, call: Call | None) -> list[int]:
    return encoder.decline(DECLINE) if call is None else encoder.call(call)


def alike_long(corpus: Corpus, count: int, quarter: int, rng: random.Random) -> list[tuple[Tool, Utterance]]:
    """Messages of nearly one length, so that little of a batch is padding.

    Args:
        quarter: 0 to 3, the shortest to the longest of four times as many messages
    """
    drawn = [one_message(corpus, rng) for _ in range(4 * count)]
    drawn.sort(key=lambda pair: len(pair[1].text))
    return drawn[count * quarter : count * (quarter + 1)]


def in_rows(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Every example in a row of its own, padded at the end."""
    rows = [collate_sharing_prefix([example]) for example in examples]
    longest = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "segments": PADDING}
    return {
        name: torch.cat([pad(row[name], (0, longest - row[name].shape[1]), value=value) for row in rows])
        for name, value in fill.items()
    }


def filing_batch(
    corpus: Corpus, form: Form, bare: Encoder, quarter: int, rng: random.Random
) -> dict[str, torch.Tensor]:
    """Messages alone, without any answer, and the form filled in on each."""
    messages = [utterance for _, utterance in alike_long(corpus, FORMS, quarter, rng)]
    rows = in_rows([example(bare, prompt_ids(bare, message.text, rng), []) for message in messages])
    return rows | {"forms": torch.tensor([form.filled_in(message) for message in messages])}


def answering_batch(corpus: Corpus, bare: Encoder, quarter: int, rng: random.Random) -> dict[str, torch.Tensor]:
    """Messages alone, each answered by the call that its tool or a desk of its kind would get."""
    return in_rows(
        [
            example(
                bare,
                prompt_ids(bare, message.text, rng),
                answer_ids(bare, undeclared(corpus, tool, message, rng)),
            )
            for tool, message in alike_long(corpus, ANSWERS, quarter, rng)
        ]
    )


def episode_batch(tokenizer: PreTrainedTokenizerFast, shown: Episode, rng: random.Random) -> dict[str, torch.Tensor]:
    """An episode in one row: its declarations once, then every message with its answer."""
    encoder = Encoder(tokenizer, shown.agents, DEFAULT_SYSTEM)
    return collate_sharing_prefix(
        [example(encoder, prompt_ids(encoder, text, rng), answer_ids(encoder, call)) for text, call in shown.messages]
    )


def batch_loss(model: Gemma3ForCausalLM, form: Form, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, or of the form where a batch is to be filed.

    The form is filled in from the last hidden state of a prompt, where the answer would begin.
    """
    hidden = model.model(
        input_ids=batch["input_ids"],
        attention_mask=attention_masks(batch["position_ids"], batch["segments"], WINDOW),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    if "forms" in batch:
        ends = (batch["segments"] != PADDING).sum(dim=1) - 1
        return form.loss(model.model.embed_tokens.weight, hidden[torch.arange(len(ends)), ends], batch["forms"])
    answers = batch["labels"][:, 1:] != IGNORED  # (R, L - 1)
    return cross_entropy(model.lm_head(hidden[:, :-1][answers]), batch["labels"][:, 1:][answers])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 2 %, then linear to zero."""
    warm = max(1, steps // 50)
    return peak * min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def batch(
    corpus: Corpus, form: Form, tokenizer: PreTrainedTokenizerFast, step: int, steps: int, seed: str
) -> dict[str, torch.Tensor]:
    """What one process learns from in one step; it depends on the arguments alone, so that training can be resumed."""
    rng = random.Random(seed)
    bare = Encoder(tokenizer, [], "")
    quarter = random.Random(step).randrange(4)  # the same in all processes, so that none waits for another
    if step < FILING * steps:
        return filing_batch(corpus, form, bare, quarter, rng)
    if step < (FILING + ANSWERING) * steps or step % 2:
        return answering_batch(corpus, bare, quarter, rng)
    return episode_batch(tokenizer, episode(corpus, rng, MESSAGES), rng)


def new_optimizer(model: Gemma3ForCausalLM, peak: float) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def train_step(
    model: Gemma3ForCausalLM, form: Form, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], lr: float
) -> float:
    """One optimizer step on the mean of the processes' losses; returns this process's own, in nats."""
    loss = batch_loss(model, form, batch)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    joined = parameters_to_vector(gradients) / distributed.get_world_size()
    distributed.all_reduce(joined)
    vector_to_parameters(joined, gradients)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Transformers checkpoint with 16-bit weights."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
