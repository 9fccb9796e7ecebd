"""Encode conversations as prompt tokens and lists as completion tokens."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerBase

from convrec_r1 import lists
from convrec_r1.base.errors import UserError
from convrec_r1.data.schema import Conversation
from convrec_r1.lists import Item
from convrec_r1.policy import templates
from convrec_r1.policy.config import DATE, NO_THOUGHTS

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

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str,
        n: int,
        max_length: int,
        *,
        template: Mapping[str, Any] = NO_THOUGHTS,
        date: str = DATE,
    ) -> None:
        """
        Args:
            tokenizer: gets PLAIN_TEMPLATE if it has no chat template.
            instruction: `data.instruction`.
            n: items in a list.
            max_length: tokens of a prompt.
            template: `model.template`.
            date: `model.date`.
        Raises:
            UserError: the chat template does not know an argument, or cannot be rendered.
        """
        self.tokenizer = tokenizer
        self.instruction = instruction.format(n=n)
        self.max_length = max_length
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.arguments = templates.arguments(tokenizer.get_chat_template(), template, date)
        templates.warn_of_thoughts(self._render([{"role": "user", "content": self.instruction}], tokenize=False)[-40:])

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
        last = max(0, len(turns) - 1)
        text = turns[-1].content if turns else ""

        def cut(dropped: int, front: int) -> list[int]:
            """Encode the conversation without its first turns and the first characters of its newest turn."""
            kept = turns[dropped:]
            if front:
                kept = (*kept[:-1], replace(kept[-1], content=text[front:].lstrip()))
            return self._encode(replace(conversation, messages=kept))

        def fits(at: tuple[int, int]) -> bool:
            return len(cut(*at)) <= self.max_length

        words = [i for i in range(1, len(text)) if text[i - 1].isspace()]
        cuts = [*((dropped, 0) for dropped in range(last + 1)), *((last, at) for at in words)]
        shortest = bisect_left(cuts, True, key=fits)
        if shortest < len(cuts):
            return cut(*cuts[shortest])
        # The last word is too long, or there is no white space: cut at any character.
        ids = cut(last, bisect_left(range(len(text)), True, key=lambda at: fits((last, at))))
        if len(ids) > self.max_length:
            raise UserError(
                f"model.max_prompt_length={self.max_length} is too short: the instruction alone (data.instruction) takes "
                f"{len(ids)} tokens with the model's chat template. Set it higher, with room for a conversation."
            )
        return ids

    def _encode(self, conversation: Conversation) -> list[int]:
        return list(self._render(chat(conversation, self.instruction), return_dict=True)["input_ids"])

    def _render(self, messages: list[dict[str, str]], **form: bool) -> Any:  # transformers annotates all forms at once
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **form, **self.arguments)
        except jinja2.TemplateError as error:
            raise UserError(
                f"The model's chat template cannot be rendered: {error}. Check model.template, and the roles of published "
                "prompts (data.prompt=ours puts our own instruction before the conversation)."
            ) from error

    def completion(self, items: Sequence[Item]) -> list[int]:
        """Return the token ids of a list as the policy should write it, with EOS at the end."""
        ids = self.tokenizer(lists.format(items), add_special_tokens=False)["input_ids"]
        return [*ids, special_id(self.tokenizer, "eos")]  # load_policy refuses tokenizers without EOS


def special_id(tokenizer: PreTrainedTokenizerBase, name: Literal["eos", "pad"]) -> Any:
    """Return the id of a special token, or None. transformers annotates these attributes with too wide a type."""
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
