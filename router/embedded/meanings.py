"""First word vectors: a bag of tokens learns to name what messages are filed under. A head start, in half a minute."""

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
"""How often each message is read, in its own letters and in small ones; more passes name no more queries rightly."""
BATCH = 256
LR = 2e-3
LEFT_OUT = 0.3
"""Largest share of a message's tokens that is left out."""
SHARPNESS = 1.5
"""Factor on a bag's agreement with an answer's name before the softmax."""


class Form:
    """What is noted of every message: the kind of request, how urgent it is, and the entries of its desk's menus."""

    def __init__(self, corpus: Corpus) -> None:
        self.urgencies = list(URGENCY.values())
        self.desks = {kind: desk for kind, desk in corpus.desks.items() if kind in corpus.requests and kind != STRAY}

    def answers(self) -> list[list[Sequence[str]]]:
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
        fields: list[list[Sequence[str]]] = [[*kinds, [DECLINE]], [[name] for name in self.urgencies]]
        return fields + [[[entry] for entry in menu.entries] for menu in menus]

    def filled_in(self, utterance: Utterance) -> list[int]:
        """The number of the answer in each field, IGNORED where none is known."""
        if utterance.kind == STRAY:
            kind, urgency = len(self.desks), IGNORED
        else:
            known = utterance.filed or not self.desks[utterance.kind].menus
            kind = list(self.desks).index(utterance.kind) if known else IGNORED
            urgency = self.urgencies.index(utterance.urgency)
        fields = [kind, urgency]
        for name, desk in self.desks.items():
            filed = utterance.filed if name == utterance.kind and utterance.filed else [None] * len(desk.menus)
            fields += [
                IGNORED if entry is None else menu.entries.index(entry)
                for menu, entry in zip(desk.menus, filed, strict=True)
            ]
        return fields


def means(vectors: torch.Tensor, lists: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean vector of each list of tokens: (lists, size)."""
    ends = torch.tensor([len(tokens) for tokens in lists]).cumsum(0)
    return embedding_bag(torch.cat(list(lists)), vectors, torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]]))


def word_vectors(encoder: Encoder, corpus: Corpus, size: int, seed: int) -> torch.Tensor:
    """Vectors of tokens whose mean over a message is nearest to the names of what the message is about.

    The model has one set of vectors for what it reads and what it writes, and begins by taking means. So these are
    trained as such, alone, with the losses of all fields of the form added up (a linear text classifier of the kind of
    Joulin et al., 2017, with names for classes).

    Returns:
        (vocabulary, size)
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    form = Form(corpus)
    # What an answer goes by has words in common: each counts once.
    answers = [
        [torch.tensor(sorted({token for name in names for token in encoder.text(name)})) for names in field]
        for field in form.answers()
    ]
    messages, forms = [], []
    for tool in corpus.tools:
        for utterance in tool.utterances:
            for text in (utterance.text, utterance.text.lower()):
                messages.append(torch.tensor(encoder.text(text)))
                forms.append(form.filled_in(utterance))
    filled = torch.tensor(forms)  # (messages, fields)

    vectors = SPREAD * torch.randn(len(encoder.tokenizer), size, generator=generator)
    vectors.requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=LR, weight_decay=0.0)
    steps = PASSES * len(messages) // (2 * BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, steps))
    for _ in trange(steps, desc="Word vectors", unit="step"):
        drawn = torch.randint(len(messages), (BATCH,), generator=generator)
        seen = []
        for message in (messages[number] for number in drawn.tolist()):
            kept = message[torch.rand(len(message), generator=generator) > LEFT_OUT * rng.random()]
            seen.append(kept if len(kept) else message)
        bags = means(vectors, seen)
        bags = bags * torch.rsqrt(bags.pow(2).mean(dim=1, keepdim=True) + 1e-6)  # as the model's last norm does
        loss = torch.zeros(())
        for field, names in enumerate(answers):
            given = filled[drawn, field]
            if (given != IGNORED).any():
                loss = loss + cross_entropy(SHARPNESS * bags @ means(vectors, names).T, given, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return vectors.detach()
