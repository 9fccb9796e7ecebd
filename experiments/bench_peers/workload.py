"""The work that both peers get: a tiny model as a Hugging Face folder, prompts of given lengths, a catalog.

Texts are Reddit-v2's (../shared/data/reddit_v2) where they are, else movieland's. A prompt is our instruction with one user
message, made of several conversations and cut at a word, so that the prompts of a length differ by a few tokens only: the
bench shows what sharing gains, not what padding costs.

No list ends before its limit, on either side and without a rule: the weights give EOS a probability of e^-100. The first
coordinate of every embedding is the same constant, no layer writes to it, and the row of EOS has a large negative number there.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import convrec_r1.cli  # noqa: F401  registers the schema
from convrec_r1.base.files import write_json
from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.parts import base_policy, encoder_for, matching
from convrec_r1.config.resolve import resolve
from convrec_r1.config.schema import Config
from convrec_r1.data import Dataset
from convrec_r1.data.load import load_data
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.policy import PromptEncoder
from convrec_r1.policy.prompts import chat

REDDIT = Path(__file__).parents[3] / "shared" / "data" / "reddit_v2"
LONGEST = 4608
"""Tokens of prompt and list together that the model has positions for."""
CONSTANT, AWAY = 0.5, -10.0
"""First coordinate of the embeddings, and that of EOS: after the final norm its logit is about 130 below the others."""


def config(*overrides: str) -> Config:
    """Return the config that a command with these overrides gets."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("config", overrides=expand(list(overrides)))
    OmegaConf.resolve(composed)
    cfg = OmegaConf.to_object(composed)
    assert isinstance(cfg, Config)
    resolve(cfg)
    return cfg


def prepare(folder: Path, lengths: Sequence[int], count: int, seed: int) -> dict[str, Any]:
    """Write model/, catalog.json and prompts-LENGTH.json. Return what they are.

    Args:
        lengths: of prompts, in tokens.
        count: prompts of each length.
        seed: of the weights and of the choice of conversations.
    """
    reddit = (REDDIT / "jsonl").is_dir()
    source = [
        "data=reddit_v2",
        f"data.path={REDDIT / 'jsonl'}",
        f"data.catalog={REDDIT / 'catalog.csv'}",
        "data.prompt=ours",
    ]
    cfg = config(
        *(source if reddit else ["data=movieland"]), "algo=grpo", "logger=none", f"seed={seed}",
        f"model.max_prompt_length={LONGEST - 512}", "model.max_completion_length=512",
    )  # fmt: skip
    data = load_data(cfg.data, cfg.n, matching(cfg), need=["train"])
    policy = base_policy(cfg, data)
    parameters = sum(p.numel() for p in policy.parameters())
    never_end(policy.causal_lm, policy.eos_ids)
    policy.save(folder / "model")
    encoder = encoder_for(cfg, policy)
    for length in lengths:
        made = prompts(data, encoder, length, count, random.Random(f"{seed}/{length}"))
        write_json(folder / f"prompts-{length}.json", made)
    write_json(folder / "catalog.json", [[item.title, item.year] for item in data.catalog])
    return {
        "data": cfg.data.name,
        "parameters": parameters,
        "vocabulary": policy.head_weight.shape[0],
        "catalog": len(data.catalog),
    }


@torch.no_grad()
def never_end(lm: Any, eos_ids: Sequence[int]) -> None:
    """Change the weights of a Qwen2 model with tied embeddings so that it never samples EOS."""
    embeddings = lm.get_input_embeddings().weight  # [V, H]
    embeddings[:, 0] = CONSTANT
    embeddings[list(eos_ids), 0] = AWAY
    for layer in lm.get_decoder().layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0


def prompts(
    data: Dataset, encoder: PromptEncoder, length: int, count: int, draw: random.Random
) -> list[dict[str, Any]]:
    """Return `count` prompts of at most `length` tokens, each as near to it as whole words allow."""
    made = []
    for i in range(count):
        owner = draw.choice(data["train"])
        words: list[str] = []
        while not words or len(encoder.prompt(asking(owner, words))) <= length:
            words += " ".join(m.content for m in draw.choice(data["train"]).messages).split()
        fitting = bisect_right(
            range(1, len(words)), length, key=lambda n: len(encoder.prompt(asking(owner, words[:n])))
        )
        conversation = asking(owner, words[:fitting])
        text = encoder.tokenizer.apply_chat_template(
            chat(conversation, encoder.instruction), tokenize=False, add_generation_prompt=True, **encoder.arguments
        )
        ids = encoder.prompt(conversation)
        assert encoder.tokenizer(text)["input_ids"] == ids
        made.append({
            "id": f"{length}-{i}", "message": conversation.messages[0].content, "text": text, "ids": ids,
            "ground_truth": [[item.title, item.year] for item in owner.ground_truth], "seen": list(owner.seen),
        })  # fmt: skip
    return made


def asking(owner: Conversation, words: Sequence[str]) -> Conversation:
    """Return a conversation of one user message with these words, with `owner`'s answer."""
    message = Message("user", " ".join(words))
    return Conversation(owner.id, owner.id, (message,), owner.ground_truth, owner.seen)
