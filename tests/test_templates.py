"""Chat templates: the same prompt on every day, thoughts switched off where the template can, and arguments that it knows."""

import logging
from datetime import datetime

import jinja2.sandbox
import pytest
from support import make_config, tiny_policy, unresolved_config
from transformers.utils import chat_template_utils

from convrec_r1.base.errors import UserError
from convrec_r1.config.checks import problems
from convrec_r1.config.parts import encoder_for, evaluation_key
from convrec_r1.data import movieland
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.policy import PromptEncoder, templates
from convrec_r1.policy.prompts import PLAIN_TEMPLATE
from convrec_r1.tasks.warm_start import warm_start_key

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>"
# In the forms of Llama 3.2, Llama 3.1, Granite and SmolLM3 (a date); Qwen3 and SmolLM3 (a switch), DeepSeek-R1 (none).
ASKS_THE_DAY = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}Today Date: {{ date_string }}\n"
    f"{TURNS}{{% endif %}}"
)
KNOWS_A_DAY = (
    "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}Today Date: {{ date_string }}\n"
    f"{TURNS}{{% endif %}}"
)
ASKS_IN_A_MACRO = (
    "{%- macro head() %}Now {{ strftime_now('%Y-%m-%d') }}, {{ strftime_now('%B') }}{%- endmacro %}{{ head() }}\n"
    f"{TURNS}{{% endif %}}"
)
SWITCH = (
    f"{TURNS}{{%- if enable_thinking is defined and enable_thinking is false %}}<think>\n\n</think>\n\n{{%- endif %}}"
    "{% endif %}"
)
DEFAULT_ON = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
    f"{TURNS}{{%- if not enable_thinking %}}<think></think>{{%- endif %}}{{% endif %}}"
)
ALWAYS = f"{TURNS}<think>\n{{% endif %}}"
ASKED = Conversation("c", "c", (Message("user", "Something tense?"),), ())


@pytest.fixture
def tokenizer():
    return tiny_policy().tokenizer


def prompt(tokenizer, source: str, **options) -> str:
    tokenizer.chat_template = source
    return tokenizer.decode(PromptEncoder(tokenizer, "Give {n}.", 7, 256, **options).prompt(ASKED))


@pytest.mark.parametrize("template", [ASKS_THE_DAY, KNOWS_A_DAY, ASKS_IN_A_MACRO])
def test_the_prompt_is_the_same_on_every_day(tokenizer, monkeypatch, template):
    made = []
    for year in (2031, 2044):

        class Day(datetime):
            @classmethod
            def now(cls, tz=None, year=year):
                return cls(year, 5, 6)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        made.append(prompt(tokenizer, template))
    assert made[0] == made[1]
    assert "26 Jul 2024" in made[0] or "Now 2024-07-26, July" in made[0]


def test_the_day_is_chosen(tokenizer):
    assert "Today Date: 01 Mar 2026" in prompt(tokenizer, ASKS_THE_DAY, date="2026-03-01")
    assert "Today Date: 01 Mar 2026" in prompt(tokenizer, KNOWS_A_DAY, date="2026-03-01")
    assert "Today Date: 1 March" in prompt(tokenizer, KNOWS_A_DAY, template={"date_string": "1 March"})
    assert problems(unresolved_config("model.date=26.7.2024")) == [
        "model.date=26.7.2024 is not a date: write YYYY-MM-DD, as in 2024-07-26."
    ]
    teacher = ("task=distill", "data=movieland", "teacher=vllm", "teacher.model=x", "model.date=2026-13-01")
    assert any(
        line.startswith("teacher.date=2026-13-01 is not a date") for line in problems(unresolved_config(*teacher))
    )


@pytest.mark.parametrize("template", [ASKS_THE_DAY, ASKS_IN_A_MACRO, PLAIN_TEMPLATE, SWITCH])
def test_a_template_for_a_server_has_the_day_in_it(template):
    """A server takes no function: the text of the template says what strftime_now gives."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda form: "today"
    messages = [{"role": "user", "content": "Hi"}]
    given = templates.arguments(template, {}, "2026-03-01")
    wanted = environment.from_string(template).render(messages=messages, add_generation_prompt=True, **given)
    made = environment.from_string(templates.dated(template, "2026-03-01"))
    assert made.render(messages=messages, add_generation_prompt=True) == wanted
    assert "today" not in wanted


@pytest.mark.parametrize("template", [SWITCH, DEFAULT_ON])
def test_thinking_is_off_unless_it_is_asked_for(tokenizer, template):
    assert prompt(tokenizer, template).count("think>") == 2
    assert "think" not in prompt(tokenizer, template, template={"enable_thinking": True})
    assert "think" not in prompt(tokenizer, template, template={})


def test_an_argument_that_a_template_does_not_know(tokenizer):
    plain = prompt(tokenizer, PLAIN_TEMPLATE, template={})
    assert prompt(tokenizer, PLAIN_TEMPLATE, template={"enable_thinking": False, "thinking": None}) == plain
    with pytest.raises(UserError, match=r"model\.template\.enable_thinking=True: .* no such variable. It has: none\."):
        prompt(tokenizer, PLAIN_TEMPLATE, template={"enable_thinking": True})
    with pytest.raises(UserError, match=r"reasoning_effort=low: .* It has: enable_thinking\."):
        prompt(tokenizer, SWITCH, template={"reasoning_effort": "low"})
    with pytest.raises(UserError, match=r"cannot be rendered: no such effort\. Check model\.template"):
        prompt(
            tokenizer, "{% if effort != 1 %}{{ raise_exception('no such effort') }}{% endif %}", template={"effort": 2}
        )


def test_a_template_that_always_thinks_is_told_of_once(tokenizer, caplog):
    templates.warn_of_thoughts.cache_clear()
    with caplog.at_level(logging.WARNING, "convrec_r1"):
        assert prompt(tokenizer, ALWAYS).endswith("<think>\n")
        prompt(tokenizer, ALWAYS)
        prompt(tokenizer, SWITCH)
    assert [record.message for record in caplog.records if "opens every reply with <think>" in record.message] == [
        caplog.records[0].message
    ]


def test_the_tiny_models_prompt_is_what_it_was(tokenizer):
    """Byte for byte as before there were arguments and dates."""
    cfg = make_config()
    policy = tiny_policy()
    text = policy.tokenizer.decode(encoder_for(cfg, policy).prompt(ASKED))
    assert text == f"User: {cfg.data.instruction.format(n=cfg.n)}\nUser: Something tense?\nAssistant:\n"
    assert encoder_for(cfg, policy).arguments == {}


@pytest.mark.parametrize("change", ["model.date=2026-03-01", "model.template.enable_thinking=true"])
def test_another_prompt_is_another_warm_start_and_another_evaluation(change):
    data = movieland.load(seed=0, n_items=5, sizes={"train": 4, "validation": 2, "test": 2})
    first, other = make_config(), make_config(change)
    assert warm_start_key(first, data) != warm_start_key(other, data)
    assert evaluation_key(first, data) != evaluation_key(other, data)
