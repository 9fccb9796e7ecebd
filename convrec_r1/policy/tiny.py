"""The tiny model: Qwen2 architecture and a byte-level BPE tokenizer, both made on the spot."""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from convrec_r1.config.schema import ModelConfig
from convrec_r1.policy.prompts import PLAIN_TEMPLATE

# What BPE may merge into one token. Names (runs of capitalised words, short words and numbers between) are one piece, so
# that a film much talked of becomes a token or two, the same ones in a conversation and in a list; a year in parentheses
# is one piece with the newline behind it, so that it closes a line in one token. A model of this size, trained for
# minutes, has no steps to spare for spelling.
_NAME_WORD = r"[\p{Lu}][\p{L}\p{N}'.&-]*"
_PIECES = "|".join(
    (
        r" ?\(\p{N}{4}\)\n?",
        rf"{_NAME_WORD}(?:(?: \p{{Ll}}{{1,3}}){{0,2}} (?:{_NAME_WORD}|\p{{N}}+))*",
        r" ?\p{Ll}\p{L}*(?:'\p{L}+)?",
        r"\p{N}{1,4}",
        r"[^\s\p{L}\p{N}]+\n?",
        r"\s",
    )
)


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of at most `vocab_size` ids; the same corpus gives the same one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=PLAIN_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(cfg: ModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Random weights, the same for the same seed; the global random state is left as it was."""
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        max_position_embeddings=cfg.max_prompt_length + cfg.max_completion_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
