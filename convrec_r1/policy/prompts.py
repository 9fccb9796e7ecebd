"""Conversation -> prompt tokens; list -> completion tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from convrec_r1 import lists
from convrec_r1.data.schema import Conversation
from convrec_r1.lists import Item

SPEAKERS = {"user": "User", "assistant": "Recommender"}

# For models that bring no chat template of their own: one marker a turn, in plain text.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


class PromptEncoder:
    """Renders conversations for one tokenizer.

    A prompt is one user message: the instruction, then the dialogue, a turn a line. A conversation that comes with its
    published prompt (`has_instruction`) is passed on as it is. Of a prompt longer than `max_length` the oldest part of
    the dialogue is left out; the head (instruction) and the end stay.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, instruction: str, n: int, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.instruction = instruction.format(n=n)
        self.max_length = max_length
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids up to where the reply begins, at most `max_length`."""
        encoded = self.tokenizer.apply_chat_template(
            chat(conversation, self.instruction), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return shorten(list(encoded["input_ids"]), self.max_length)

    def completion(self, items: Sequence[Item]) -> list[int]:
        """Token ids of a list as the policy should write it, EOS last."""
        ids = self.tokenizer(lists.format(items), add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]


def chat(conversation: Conversation, instruction: str) -> list[dict[str, str]]:
    """A prompt as messages of {role, content}; `instruction` says what is asked for, its {n} filled in."""
    if conversation.has_instruction:
        return [{"role": m.role, "content": m.content} for m in conversation.messages]
    return [{"role": "user", "content": f"{instruction}\n{dialogue(conversation)}"}]


def dialogue(conversation: Conversation) -> str:
    return "\n".join(f"{SPEAKERS[m.role]}: {m.content}" for m in conversation.messages)


def shorten(ids: list[int], limit: int) -> list[int]:
    """At most `limit` ids: the first quarter of the limit, and the end. What is oldest in a dialogue goes."""
    if len(ids) <= limit:
        return ids
    head = limit // 4
    return ids[:head] + ids[len(ids) - (limit - head) :]
