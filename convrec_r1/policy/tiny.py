"""The tiny model: Qwen2 architecture with random weights, and a tokenizer trained on the data."""

import json
import re
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from convrec_r1.lists import lines
from convrec_r1.policy.config import ModelConfig
from convrec_r1.policy.prompts import PLAIN_TEMPLATE, special_id

_DATED = re.compile(r"\s*(\S.*?)\s*\((\d{4})\)")
PAD, END = "<|pad|>", "<|end|>"


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer with at most `vocab_size` ids. The same corpus gives the same tokenizer.

    It pre-tokenizes as Qwen2 does, because transformers sets that rule for every Qwen2 tokenizer that it loads. The most
    frequent titles and years in the lists of the corpus are single tokens, up to an eighth of the vocabulary each. So a line
    takes about three tokens instead of ten, and a model that trains for minutes need not learn to spell.
    """
    texts = list(corpus)
    titles, years = _frequent(texts, vocab_size // 8)
    rule = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = rule.normalizer, rule.pre_tokenizer
    longest_first = sorted([*titles, *years], key=len, reverse=True)
    named = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)" if longest_first else r"(?!)")
    bpe.train_from_iterator(
        (named.sub("\n", text) for text in texts),
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(titles) - len(years),
            special_tokens=[PAD, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        # The annotations are too narrow: `tokenizers` takes pairs, and a byte-level vocabulary has no unknown token.
        merges=[tuple(pair) for pair in learned["merges"]],  # pyright: ignore[reportArgumentType]
        unk_token=None,  # pyright: ignore[reportArgumentType]
        eos_token=END,
        pad_token=PAD,
        chat_template=PLAIN_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(title, single_word=True, normalized=False) for title in titles])
    tokenizer.add_tokens([AddedToken(year, normalized=False) for year in years])
    return tokenizer


def _frequent(texts: Iterable[str], limit: int) -> tuple[list[str], list[str]]:
    """Return the `limit` most frequent titles and years. A year is " (1995)", with and without a newline after it.

    A sentence's year counts too. The vocabulary does not depend on what the parser of lists reads.
    """
    found = [_DATED.match(line) for text in texts for line in lines(text)]
    titles = Counter(match[1] for match in found if match and len(match[1]) < 60)
    years = Counter(int(match[2]) for match in found if match)
    common = [f" ({year}){end}" for year, _ in _ranked(years)[: limit // 2] for end in ("", "\n")]
    return [title for title, count in _ranked(titles)[:limit] if count > 1], common


def _ranked(counts: Counter) -> list[tuple]:
    """Return (key, count) by falling count, then by key: unlike `most_common`, independent of the order of insertion."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def tiny_model(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """Return a model with random weights that follow from `seed`. torch's global random state does not change."""
    architecture = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,  # padded
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        max_position_embeddings=cfg.max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=special_id(tokenizer, "eos"),
        pad_token_id=special_id(tokenizer, "pad"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(architecture)
