"""Texts as weighed words: no weights, no network, the same on every machine."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from convrec_r1.distill.config import EmbedderConfig


class TfidfEmbedder:
    """(1 + log tf) (1 + log((1 + n) / (1 + df))) of words and runs of up to `cfg.ngrams` words, scaled to length 1; n items, df
    of them with the word. The vocabulary is the items', the `cfg.max_features` most frequent.

    English function words count nothing: conversations are full of them, and on ReDial's validation conversations leaving
    them out lifts Recall@50 of the context's cosines from 0.072 to 0.098.
    """

    def __init__(self, cfg: EmbedderConfig) -> None:
        self._vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            stop_words="english",
            strip_accents="unicode",
            ngram_range=(1, cfg.ngrams),
            max_features=cfg.max_features,
            dtype=np.float32,  # pyright: ignore[reportArgumentType]  # untyped there: taken from its default, float64
        )
        self._empty = False

    def fit(self, items: Sequence[str]) -> None:
        try:
            self._vectorizer.fit(items)
        except ValueError:  # no item has a word: then no text is near to any
            self._empty = True

    def items(self, texts: Sequence[str]) -> sparse.csr_array:
        if self._empty or not len(texts):
            width = 1 if self._empty else len(self._vectorizer.vocabulary_)
            return sparse.csr_array((len(texts), width), dtype=np.float32)
        return sparse.csr_array(self._vectorizer.transform(texts))

    def conversations(self, texts: Sequence[str]) -> sparse.csr_array:
        return self.items(texts)
