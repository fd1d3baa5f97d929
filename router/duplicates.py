"""Texts that say the same in nearly the same letters. Used to keep splits, and the embedded base's corpus, apart."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

NEAR = 0.7
"""Jaccard similarity of character 4-grams from which two texts count as nearly the same."""

BLOCK = 2048


def normalised(text: str) -> str:
    """`text` in lower case with letters and digits only, words one blank apart: what is left to compare."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def similarities(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Jaccard similarity of the sets of character 4-grams, block by block.

    Yields:
        (first row of the block, array of shape (rows of the block, len(right)), values in [0, 1])
    """
    vectorizer = CountVectorizer(
        preprocessor=normalised, analyzer="char_wb", ngram_range=(4, 4), binary=True, dtype=np.float32
    )
    vectorizer.fit([*left, *right, "word"])  # "word": a vocabulary even where all texts are empty
    columns = vectorizer.transform(right)
    size_right = np.asarray(columns.sum(axis=1)).ravel()
    for start in range(0, len(left), BLOCK):
        rows = vectorizer.transform(left[start : start + BLOCK])
        shared = (rows @ columns.T).toarray()
        union = np.asarray(rows.sum(axis=1)) + size_right - shared
        yield start, shared / np.maximum(union, 1)


def near_duplicates(left: Sequence[str], right: Sequence[str], threshold: float = NEAR) -> list[tuple[int, int, float]]:
    """All pairs (index in `left`, index in `right`, similarity) at or above `threshold`, in order."""
    pairs = []
    if left and right:
        for start, block in similarities(left, right):
            for i, j in zip(*np.nonzero(block >= threshold), strict=True):
                pairs.append((start + int(i), int(j), float(block[i, j])))
    return pairs
