"""What is taken for a secret: whole words of a variable's name decide, not parts of them."""

import pytest
from support import unresolved_config

from convrec_r1.base.confidential import holds, is_secret, secrets_in
from convrec_r1.config.checks import problems

SECRET = (
    *(
        "OPENAI_API_KEY",
        "OPENAI_API_KEY_2",
        "OPENAI_API_KEY_PERSONAL",
        "openai_api_key",
        "openaiApiKey",
        "WANDB_API_KEY",
    ),
    *("WANDBAPIKEY", "VLLM_API_KEY", "KAGGLE_KEY", "API_KEYS", "HF_TOKEN", "HF_TOKEN1", "HUGGING_FACE_HUB_TOKEN"),
    *(
        "GITHUB_TOKEN",
        "GITHUB_PAT",
        "SLACK_BOT_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AZURE_CLIENT_SECRET",
    ),
    *("SECRET_KEY_BASE", "MY_CREDENTIAL", "PASSWORD", "PGPASSWORD", "DB_PASSWORD", "REDIS_PASSWD", "MYSQL_PWD"),
    "SSH_PASSPHRASE",
)
NO_SECRET = (
    *("TOKENIZER", "TOKENIZER_MODEL", "HF_TOKENIZER", "TOKENIZERS_PARALLELISM", "TOKENIZATION", "TOKENS", "MAX_TOKENS"),
    *("MAX_NEW_TOKENS", "TOKEN_BUDGET", "TOKEN_LIMIT", "EOS_TOKEN", "PAD_TOKEN", "KEYBOARD", "XKB_KEYBOARD", "KEYMAP"),
    *("MONKEY", "MONKEYPATCH", "TURKEY", "DONKEY", "KEY_COLUMN", "PRIMARY_KEY", "PUBLIC_KEY", "AWS_ACCESS_KEY_ID"),
    *("HF_TOKEN_PATH", "GOOGLE_API_KEY_FILE", "CREDENTIALS_FILE", "SECRETARY", "PASSAGE", "PATH", "PATIENCE", "PWD"),
    "OLDPWD",
)


@pytest.mark.parametrize("name", SECRET)
def test_a_name_of_a_secret(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", NO_SECRET)
def test_a_name_that_only_looks_like_one(name):
    assert not is_secret(name)
    assert not is_secret(name.lower())


def test_values_count_as_whole_words_and_from_eight_characters():
    environment = {
        "HF_TOKEN": "recommend",
        "OPENAI_API_KEY": "none",
        "MINE": "sk-0123456789",
        "OTHER": "something else",
    }
    assert secrets_in(environment) == {"recommend": "HF_TOKEN"}
    assert secrets_in(environment, "MINE") == {"recommend": "HF_TOKEN", "sk-0123456789": "MINE"}
    assert holds("Bearer sk-0123456789", "sk-0123456789")
    assert holds("http://x/?key=sk-0123456789&y", "sk-0123456789")
    assert not holds("You are a recommender.", "recommend")


def test_a_model_named_in_the_environment_is_no_secret_but_the_teachers_key_is(monkeypatch):
    monkeypatch.setenv("TOKENIZER_MODEL", "Qwen/Qwen3-0.6B")
    monkeypatch.setenv("MAX_TOKENS_MODEL", "Qwen/Qwen3-0.6B")
    monkeypatch.setenv("ENDPOINT", "sk-0123456789")
    assert problems(unresolved_config("model=Qwen/Qwen3-0.6B")) == []
    teacher = ("task=distill", "teacher=openai", "teacher.model=x", "teacher.api_key_env=ENDPOINT")
    (wrong,) = problems(unresolved_config(*teacher, "+teacher.extra.key=sk-0123456789"))
    assert "teacher.extra.key holds the value of the environment variable ENDPOINT" in wrong
    assert "sk-0123456789" not in wrong
