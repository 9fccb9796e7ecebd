"""Encode conversations as prompt tokens and lists as completion tokens."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from transformers import BatchEncoding, PreTrainedTokenizerBase

from convrec_r1 import lists
from convrec_r1.base.errors import UserError
from convrec_r1.data.schema import Conversation
from convrec_r1.lists import Item

SPEAKERS = {"user": "User", "assistant": "Recommender"}

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""Chat template of tokenizers that have none."""


class PromptEncoder:
    """Encoder of conversations and lists for one tokenizer.

    A prompt is one user message: the instruction, then the dialogue with one turn per line. If it is longer than `max_length`,
    the oldest turns are dropped. If the newest turn alone is too long, its first words are dropped. The instruction, the
    speaker and the chat template stay complete.

    A conversation with a published prompt (`has_instruction`) is encoded as it is. If it is too long, tokens in its middle are
    dropped (`shorten`), because its turns are not known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, instruction: str, n: int, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.instruction = instruction.format(n=n)
        self.max_length = max_length
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the token ids of a prompt, at most `max_length`, up to where the reply begins.

        Raises:
            UserError: the instruction alone is too long.
        """
        ids = self._encode(conversation)
        if len(ids) <= self.max_length:
            return ids
        if conversation.has_instruction:
            return shorten(ids, self.max_length)
        turns = conversation.messages
        newest = turns[-1] if turns else None

        def without(turns_left_out: int, front: int = 0) -> Conversation:
            kept = turns[turns_left_out:]
            if front and newest:
                kept = (*kept[:-1], replace(newest, content=newest.content[front:].lstrip()))
            return replace(conversation, messages=kept)

        def fits(shorter: Conversation) -> bool:
            return len(self._encode(shorter)) <= self.max_length

        last = max(0, len(turns) - 1)
        fewest = bisect_left(range(last), True, key=lambda k: fits(without(k)))  # `last` if none fits
        if fits(without(fewest)):
            return self._encode(without(fewest))
        text = newest.content if newest else ""
        words = [i for i in range(1, len(text)) if text[i - 1].isspace()] + [len(text)]
        front = words[min(bisect_left(words, True, key=lambda at: fits(without(last, at))), len(words) - 1)]
        if front < len(text):
            return self._encode(without(last, front))
        # The last word is too long, or there is no white space: cut at any character.
        front = bisect_left(range(len(text)), True, key=lambda at: fits(without(last, at)))
        if not fits(without(last, front)):
            needed = len(self._encode(without(last, len(text))))
            raise UserError(
                f"model.max_prompt_length={self.max_length} is too short: the instruction alone (data.instruction) takes "
                f"{needed} tokens with the model's chat template. Set it higher, with room for a conversation."
            )
        return self._encode(without(last, front))

    def _encode(self, conversation: Conversation) -> list[int]:
        encoded = self.tokenizer.apply_chat_template(
            chat(conversation, self.instruction), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert isinstance(encoded, BatchEncoding)  # return_dict
        return list(encoded["input_ids"])

    def completion(self, items: Sequence[Item]) -> list[int]:
        """Return the token ids of a list as the policy should write it, with EOS at the end."""
        ids = self.tokenizer(lists.format(items), add_special_tokens=False)["input_ids"]
        eos = special_id(self.tokenizer, "eos")
        assert eos is not None  # load_policy refuses tokenizers without EOS
        return [*ids, eos]


def special_id(tokenizer: PreTrainedTokenizerBase, name: Literal["eos", "pad"]) -> int | None:
    """Return the id of a special token. transformers annotates these attributes with too wide a type."""
    return getattr(tokenizer, f"{name}_token_id")


def chat(conversation: Conversation, instruction: str) -> list[dict[str, str]]:
    """Return a prompt as messages of {role, content}. `instruction` has its {n} filled in."""
    if conversation.has_instruction:
        return [{"role": m.role, "content": m.content} for m in conversation.messages]
    return [{"role": "user", "content": f"{instruction}\n{dialogue(conversation)}"}]


def dialogue(conversation: Conversation) -> str:
    """Return a conversation as text, one turn per line."""
    return "\n".join(f"{SPEAKERS[m.role]}: {m.content}" for m in conversation.messages)


def shorten(ids: list[int], limit: int) -> list[int]:
    """Return at most `limit` ids: a quarter of the limit from the start, the rest from the end."""
    if len(ids) <= limit:
        return ids
    head = limit // 4
    return ids[:head] + ids[len(ids) - (limit - head) :]
