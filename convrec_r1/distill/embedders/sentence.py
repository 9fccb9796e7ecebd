"""Texts embedded by a pretrained model of the library sentence-transformers (extra `embed`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import bar
from convrec_r1.distill.config import SentenceTransformersConfig

_CHUNK = 64
"""Batches between two updates of the progress bar."""


class SentenceEmbedder:
    """`options.model`, a Hub id or a folder.

    Of a text that is too long, an item keeps its beginning and a conversation its end: the last request is the current one.
    """

    def __init__(self, options: SentenceTransformersConfig) -> None:
        self.cfg = options
        self._model = _load(options)

    def embed(self, items: Sequence[str], conversations: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        prompt = self.cfg.conversation_prompt
        return (
            self._encode(items, self.cfg.item_prompt, "Embedding items"),
            self._encode([self._end_of(text, prompt) for text in conversations], prompt, "Embedding conversations"),
        )

    def _encode(self, texts: Sequence[str], prompt: str, title: str) -> np.ndarray:
        """Return [M, D] float32 of length 1. Equal texts are embedded once, longest first: less padding."""
        unique = sorted(set(texts), key=lambda text: (-len(text), text))
        place = {text: at for at, text in enumerate(unique)}
        vectors = np.zeros((len(unique), self._model.get_embedding_dimension()), dtype=np.float32)
        step = _CHUNK * self.cfg.batch_size
        with bar(title, len(unique)) as progress:
            for start in range(0, len(unique), step):
                part = unique[start : start + step]
                vectors[start : start + step] = self._model.encode(
                    part,
                    prompt=prompt or None,
                    batch_size=self.cfg.batch_size,
                    normalize_embeddings=True,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
                progress.advance(len(part))
        return vectors[[place[text] for text in texts]] if len(texts) else vectors

    def _end_of(self, text: str, prompt: str) -> str:
        """Cut the beginning of a text that is too long for model and prompt, between two tokens."""
        limit = self._model.max_seq_length
        tokenizer = self._model.tokenizer
        if limit is None or len(text) < limit:  # a token has at least one character
            return text
        room = limit - tokenizer.num_special_tokens_to_add() - len(tokenizer.tokenize(prompt))
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return text[spans[-max(1, room)][0] :] if len(spans) > room else text


def _load(cfg: SentenceTransformersConfig) -> Any:
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]  # optional

    try:
        return SentenceTransformer(str(cfg.model), revision=cfg.revision, device=cfg.device, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"embedder.model={cfg.model} cannot be loaded: {said[:300]}. Give the id of a sentence-transformers model on "
            "the Hub, or the folder of one; embedder=tfidf needs none."
        ) from error
