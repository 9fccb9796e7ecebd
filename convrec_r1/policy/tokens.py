"""Tables of token ids: newlines, white space, ends of completions, marks of thoughts."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from convrec_r1.lists import WHITESPACE, thought_mark

_texts: WeakKeyDictionary[PreTrainedTokenizerBase, Any] = WeakKeyDictionary()
"""What `token_texts` found, with what it depends on besides the tokenizer."""


class TokenTables(NamedTuple):
    """Tables of V token ids, on the CPU."""

    newline: Tensor
    """BoolTensor: has a newline."""
    blank: Tensor
    """BoolTensor: white space only, up to its first newline."""
    opens: Tensor
    """BoolTensor: has text after its last newline."""
    eos: Tensor
    """BoolTensor: ends a completion."""
    thought: Tensor
    """Int8 tensor: 1 begins a model's thoughts, -1 ends them, 0 for all others (`lists.thought_mark`)."""


def token_tables(tokenizer: PreTrainedTokenizerBase, size: int, eos_ids: Sequence[int]) -> TokenTables:
    """Return the tables of a tokenizer.

    Special tokens count as text. Ids that write nothing, such as those of padded embeddings, are blank. A token with a whole
    line between two newlines counts as one newline.

    Args:
        tokenizer: decodes each id.
        size: V, rows of the embedding.
        eos_ids: ids that end a completion.
    """
    newline, blank, opens, eos = (torch.zeros(size, dtype=torch.bool) for _ in range(4))
    thought = torch.zeros(size, dtype=torch.int8)
    special = set(tokenizer.all_special_ids)
    _, texts = token_texts(tokenizer, size)
    blank[len(texts) :] = True
    for i, text in enumerate(texts):
        thought[i] = thought_mark(text)
        if i not in special:
            head, *_, tail = text.split("\n") if "\n" in text else (text, "")
            newline[i] = "\n" in text
            blank[i] = not head.strip(WHITESPACE)
            opens[i] = bool(tail.strip(WHITESPACE))
    eos[[i for i in eos_ids if i < size]] = True
    return TokenTables(newline, blank & ~eos, opens, eos, thought)


def token_texts(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[str]]:
    """Return what each id writes alone, and inside a text. Alone, a space at the beginning is lost (SentencePiece).

    Kept with the tokenizer: a large vocabulary takes seconds, for the policy and for the catalog constraint.

    size: rows of the embedding. Ids from there on, and ids that the tokenizer does not know, are left out.
    """
    key = size, len(tokenizer)
    found = _texts.get(tokenizer)
    if found is None or found[0] != key:
        found = _texts[tokenizer] = key, _token_texts(tokenizer, size)
    return found[1]


def _token_texts(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[str]]:
    known = [[i] for i in range(min(size, len(tokenizer)))]
    alone = tokenizer.batch_decode(known, clean_up_tokenization_spaces=False)
    letter = tokenizer("A", add_special_tokens=False)["input_ids"][-1:]
    before = str(tokenizer.decode(letter, clean_up_tokenization_spaces=False))
    inside = tokenizer.batch_decode([[*letter, *ids] for ids in known], clean_up_tokenization_spaces=False)
    return alone, [
        pair[len(before) :] if letter and pair.startswith(before) else text
        for pair, text in zip(inside, alone, strict=True)
    ]
