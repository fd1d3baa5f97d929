"""First word vectors from counts: which tokens occur with which tools. A head start for the network, in seconds."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from router.embedded.corpus import Corpus
from router.embedded.tokenizer import BLANK
from router.encoding import Encoder

SPREAD = 0.05
"""Standard deviation of the vectors' entries; fresh Gemma embeddings have 0.02."""


def texts_by_tool(corpus: Corpus) -> list[list[str]]:
    """For each tool every text that speaks of it: its utterances, each with the names it goes by, and the desks' names.

    A group for each thing that can be asked of a tool would be finer; a linear reader of those vectors told desks apart
    worse (74 % instead of 79 % of the bank's queries).
    """
    groups = []
    for tool in corpus.tools:
        texts = [tool.agent.name, tool.agent.description, *corpus.desks[tool.kind].names]
        for utterance in tool.utterances:
            texts += [utterance.text, *utterance.filed, *utterance.topics]
        groups.append(texts)
    return groups


def word_vectors(encoder: Encoder, groups: Sequence[Sequence[str]], size: int) -> torch.Tensor:
    """Vectors of tokens, so that tokens which occur with the same tools are near each other.

    Positive pointwise mutual information of token and tool, reduced by singular value decomposition (Levy and
    Goldberg, 2014). Tokens that occur everywhere come out near zero, so that a mean over a message speaks of its
    content. A word has one vector, with a blank in front or not, in small letters or capitals.

    Args:
        size: at most as many as groups

    Returns:
        (vocabulary, size), the rows of tokens that never occur random (from torch's global seed)
    """
    vocabulary = encoder.tokenizer.get_vocab()
    words: dict[str, int] = {}
    word_of = np.zeros(len(vocabulary), dtype=np.int64)
    for token, index in vocabulary.items():
        word_of[index] = words.setdefault(token.lstrip(BLANK).lower(), len(words))
    counts = np.zeros((len(words), len(groups)))
    for column, texts in enumerate(groups):
        for text in texts:
            for written in (text, text.lower()):
                np.add.at(counts[:, column], word_of[encoder.text(written)], 1)
    total = counts.sum()
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    information = np.log((counts + 0.1) / (expected + 0.1)).clip(min=0)
    left, strength, _ = randomized_svd(information, n_components=size, random_state=0)
    vectors = left * np.sqrt(strength)
    vectors *= SPREAD / vectors[counts.sum(axis=1) > 0].std()
    return torch.tensor(vectors[word_of], dtype=torch.float32) + 0.01 * torch.randn(len(vocabulary), size)
