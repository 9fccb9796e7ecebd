"""Embedder kinds -> how to make one. Imports happen on use: what is not chosen need not be installed."""

from convrec_r1.distill.config import EmbedderConfig, EmbedderKind
from convrec_r1.distill.embedders.base import Embedder


def make_embedder(cfg: EmbedderConfig) -> Embedder:
    """Raises UserError where a model cannot be loaded."""
    match cfg.kind:
        case EmbedderKind.tfidf:
            from convrec_r1.distill.embedders.tfidf import TfidfEmbedder

            return TfidfEmbedder(cfg)
        case EmbedderKind.sentence_transformers:
            from convrec_r1.distill.embedders.sentence import SentenceEmbedder

            return SentenceEmbedder(cfg)
