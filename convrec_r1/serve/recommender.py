"""`Recommender`: a trained policy in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convrec_r1.data.schema import Message
from convrec_r1.serve.load import load_session
from convrec_r1.serve.request import Messages, Recommendation, Request
from convrec_r1.serve.session import Reply, Session


class Recommender:
    """A policy that answers conversations with ranked lists. Close it at the end, or use it in a `with` block."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Recommender:
        """Load a policy.

        Args:
            path: folder of a run, of a checkpoint or of a policy, or a Hub id.
            options:
                engine: "hf", "vllm", or "auto" (default): vLLM where it is installed for GPUs and one is there, else hf. Or an
                    `HFConfig` or `VLLMConfig` (rollout/config.py).
                constraint: "catalog" (default): every line is an item of the catalog, none twice, none seen. "none": the policy
                    writes what it likes; a line that names no item of the catalog has `item` None.
                catalog: file of the catalog, or a `Catalog`, in place of the policy's own.
                match: a `Matching`, the rule for "the same item", in place of the policy's own.
                device: as torch names it. Default: the GPU if there is one, else the CPU.
                dtype: of the weights, "float32" (default) or "bfloat16".
                revision: branch, tag or commit on the Hub.
                limit: unanswered requests from which on another one is refused (`Busy`). Default 256.
        Raises:
            UserError: there is no policy at `path`, or no catalog for the constraint.
        """
        return cls(load_session(path, **options))

    def recommend(self, messages: Messages | Sequence[Messages], n: int | None = None, **options: Any) -> list[Any]:
        """Answer a conversation, or several at a time.

        Args:
            messages: the user's message, or a list of {role, content}; or a list of conversations in one of these forms, which
                are answered as a batch.
            n: recommendations. None: as many as the policy was trained to give.
            options: of `Request`: seen, exclude, where, temperature, top_p, top_k, seed.
        Returns:
            `Recommendation`s, best first; for several conversations a list of lists in their order. A list has fewer than `n`
            items if fewer are left.
        Raises:
            UserError: the request cannot be answered.
        """
        conversations: Any = messages if (several := are_several(messages)) else [messages]
        lists = [reply.result() for reply in self.ask([Request(one, n, **options) for one in conversations])]
        return lists if several else lists[0]

    def stream(self, messages: Messages, n: int | None = None, **options: Any) -> Iterator[Recommendation]:
        """Yield the items of one list as they are written. Arguments as for `recommend`.

        A caller that stops before the end cancels the rest.
        """
        return _followed(self.session.submit(Request(messages, n, **options)))

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer requests together. Return their replies, which are done, with notes and counts of tokens."""
        replies: list[Reply] = []
        try:
            for request in requests:
                if len(replies) >= self.session.limit:
                    replies[-self.session.limit].result()
                replies.append(self.session.submit(request))
            for reply in replies:
                reply.result()
        except BaseException:
            for reply in replies:
                reply.cancel()
            raise
        return replies

    def close(self) -> None:
        """Free the model. May be called twice."""
        self.session.close(wait=False)

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def are_several(messages: Any) -> bool:
    """Return whether these are several conversations, and not the messages of one."""
    if not isinstance(messages, (list, tuple)) or not messages:
        return False
    return not isinstance(messages[0], (Mapping, Message))


def _followed(reply: Reply) -> Iterator[Recommendation]:
    try:
        yield from reply
    finally:
        reply.cancel()
