"""First word vectors from counts: which tokens occur with which tools. A head start for the network, in seconds."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import svd

from router.embedded.corpus import Corpus
from router.encoding import Encoder

SPREAD = 0.05
"""Standard deviation of the vectors' entries; fresh Gemma embeddings have 0.02."""


def texts_by_tool(corpus: Corpus) -> list[list[str]]:
    """For each tool every text that speaks of it: its declaration's words and its utterances, also in lower case."""
    groups = []
    for tool in corpus.tools:
        words = [tool.agent.name, tool.agent.description, *corpus.desks[tool.kind].names]
        for parameter in tool.agent.parameters.values():
            words += [parameter.description, *parameter.enum]
        texts = [utterance.text for utterance in tool.utterances]
        groups.append([*words, *texts, *(text.lower() for text in texts)])
    return groups


def word_vectors(encoder: Encoder, groups: Sequence[Sequence[str]], vocabulary: int, size: int) -> torch.Tensor:
    """Vectors of tokens, so that tokens which occur with the same tools are near each other.

    Positive pointwise mutual information of token and tool, reduced by singular value decomposition (Levy and Goldberg,
    2014). Tokens that occur everywhere come out near zero, so that a mean over a message speaks of its content.

    Returns:
        (vocabulary, size), the rows of tokens that never occur random (from torch's global seed)
    """
    counts = np.zeros((vocabulary, len(groups)))
    for column, texts in enumerate(groups):
        for text in texts:
            np.add.at(counts[:, column], encoder.text(text), 1)
    total = counts.sum()
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    information = np.log((counts + 0.1) / (expected + 0.1)).clip(min=0)
    left, strength, _ = svd(information, full_matrices=False, lapack_driver="gesvd")
    vectors = np.zeros((vocabulary, size))
    rank = min(size, len(strength))
    vectors[:, :rank] = (left * np.sqrt(strength))[:, :rank]
    vectors *= SPREAD / vectors[counts.sum(axis=1) > 0].std()
    return torch.tensor(vectors, dtype=torch.float32) + 0.01 * torch.randn(vocabulary, size)
