"""What messages are filed under, and a network's first lesson in it: word vectors, learned in about a minute."""

import random
import re
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy, embedding_bag
from tqdm import trange

from router.embedded.corpus import STRAY, URGENCY, Corpus, Utterance
from router.encoding import Encoder
from router.examples import DECLINE
from router.prefix_sharing import IGNORED

SPREAD = 0.05
"""Standard deviation of the first vectors' entries."""
PASSES = 8
"""How often each message is read, in its own letters or in small ones; more passes name no more queries rightly."""
BATCH = 256
LR = 2e-3
LEFT_OUT = 0.3
"""Largest share of a message's tokens that is left out."""
SHARPNESS = 1.5
"""Factor on a summary's agreement with an answer's name before the softmax."""


class Form:
    """What is noted of every message: the kind of request, how urgent it is, and the entries of its desk's menus.

    The possible answers to each field go by names, and a message's answer is the one whose name's vector agrees best
    with the message's summary, a vector too.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder) -> None:
        self.desks = {kind: desk for kind, desk in corpus.desks.items() if kind in corpus.requests and kind != STRAY}
        # What an answer goes by has words in common: each counts once.
        self.answers = [
            [torch.tensor(sorted({token for name in names for token in encoder.text(name)})) for names in field]
            for field in self._names()
        ]

    def _names(self) -> list[list[Sequence[str]]]:
        """For each field its possible answers, and for each answer what it goes by.

        A kind goes by its desk's names and by the words that only its desk is described with: so whatever an agent for
        it is called, the words of its name are near.
        """
        described = {
            kind: {word for text in desk.descriptions for word in re.findall(r"[a-z]+", text.lower())}
            for kind, desk in self.desks.items()
        }
        kinds: list[Sequence[str]] = []
        for kind, desk in self.desks.items():
            elsewhere = set().union(*(words for other, words in described.items() if other != kind))
            kinds.append([*desk.names, *sorted(described[kind] - elsewhere)])
        menus = [menu for desk in self.desks.values() for menu in desk.menus]
        fields: list[list[Sequence[str]]] = [[*kinds, [DECLINE]], [[name] for name in URGENCY.values()]]
        return fields + [[[entry] for entry in menu.entries] for menu in menus]

    def filled_in(self, utterance: Utterance) -> list[int]:
        """The number of the answer in each field, IGNORED where none is known."""
        if utterance.kind == STRAY:
            kind, urgency = len(self.desks), IGNORED
        else:
            known = utterance.filed or not self.desks[utterance.kind].menus
            kind = list(self.desks).index(utterance.kind) if known else IGNORED
            urgency = list(URGENCY.values()).index(utterance.urgency)
        fields = [kind, urgency]
        for name, desk in self.desks.items():
            filed = utterance.filed if name == utterance.kind and utterance.filed else [None] * len(desk.menus)
            fields += [
                IGNORED if entry is None else menu.entries.index(entry)
                for menu, entry in zip(desk.menus, filed, strict=True)
            ]
        return fields

    def loss(self, vectors: torch.Tensor, summaries: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the known answers.

        Args:
            vectors: of all tokens, (vocabulary, size)
            summaries: of messages, (messages, size)
            filled: what `filled_in` gives for each, (messages, fields)
        """
        total = torch.zeros(())
        for names, answers in zip(self.answers, filled.T, strict=True):
            agreement = summaries @ means(vectors, names).T
            total = total + cross_entropy(SHARPNESS * agreement, answers, ignore_index=IGNORED, reduction="sum")
        return total / (filled != IGNORED).sum()


def means(vectors: torch.Tensor, lists: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean vector of each list of tokens: (lists, size)."""
    ends = torch.tensor([len(tokens) for tokens in lists]).cumsum(0)
    return embedding_bag(torch.cat(list(lists)), vectors, torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]]))


def word_vectors(form: Form, encoder: Encoder, corpus: Corpus, size: int, seed: int) -> torch.Tensor:
    """Vectors of tokens whose mean over a message is nearest to the names of what the message is about.

    The model has one set of vectors for what it reads and what it writes, and begins by taking means. So these are
    trained as such, alone (a linear text classifier of the kind of Joulin et al., 2017, with names for classes).

    Returns:
        (vocabulary, size)
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    utterances = [utterance for tool in corpus.tools for utterance in tool.utterances]
    filled = torch.tensor([form.filled_in(utterance) for utterance in utterances])  # (messages, fields)
    messages = [
        [torch.tensor(encoder.text(text)) for text in (utterance.text, utterance.text.lower())]
        for utterance in utterances
    ]

    vectors = SPREAD * torch.randn(len(encoder.tokenizer), size, generator=generator)
    vectors.requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=LR, weight_decay=0.0)
    steps = PASSES * len(messages) // BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, steps))
    for _ in trange(steps, desc="Word vectors", unit="step"):
        drawn = torch.randint(len(messages), (BATCH,), generator=generator)
        seen = []
        for message in (rng.choice(messages[number]) for number in drawn.tolist()):
            kept = message[torch.rand(len(message), generator=generator) > LEFT_OUT * rng.random()]
            seen.append(kept if len(kept) else message)
        bags = means(vectors, seen)
        bags = bags * torch.rsqrt(bags.pow(2).mean(dim=1, keepdim=True) + 1e-6)  # as the model's last norm does
        loss = form.loss(vectors, bags, filled[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return vectors.detach()
