"""Upload a folder to the Hugging Face Hub, as one commit: all of it or nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client that the library uses: it has changed  # pyright: ignore[reportPrivateImportUsage]
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from convrec_r1.base.errors import UserError
from convrec_r1.serve.package import CATALOG

_log = logging.getLogger(__name__)
_STALE = ["*.safetensors", "*.safetensors.index.json", CATALOG]
"""Files of an earlier upload that the same commit removes unless it brings them again."""


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Upload `folder` into the repository `name`, which is made if it is not there. Return the address of the commit.

    Args:
        private: a new repository is private. An existing one must be.
        message: of the commit.
    Raises:
        UserError: no token, no connection, no right to write, or the repository is public and `private` is true.
    """
    api = HfApi(library_name="convrec-r1")
    with _explained(folder, name):
        user = api.whoami()["name"]
        new = _check_visibility(api, name, private=private)
        if new:
            api.create_repo(name, private=private)
            _log.info("Made %s (%s)", name, "private" if private else "public")
        _log.info("Uploading %s to %s as %s", folder, name, user)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=_STALE)
    return commit.commit_url


def _check_visibility(api: HfApi, name: str, *, private: bool) -> bool:
    """Return whether the repository is still to be made. Raises UserError if it is public, and must not be."""
    try:
        found = api.model_info(name)
    except RepositoryNotFoundError:
        return True
    if private and not found.private:
        raise UserError(
            f"{name} exists and is public. publish.private=false publishes to everybody; or give hub= another name."
        )
    return False


@contextlib.contextmanager
def _explained(folder: Path, name: str) -> Iterator[None]:
    """Turn errors of the Hub's library into a message that says what to do."""
    kept = f"Nothing was uploaded. The folder is ready: {folder}. Then run the same command again."
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError(
            "No token for the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN, with a token that may write "
            f"(huggingface.co/settings/tokens). {kept}"
        ) from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"HF_HUB_OFFLINE is set, so the Hub is not asked: unset it. {kept}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            advice = f"The token is not valid, or may not write to {name.partition('/')[0]}: run `hf auth login` with another."
        else:
            advice = "Try again later, or see status.huggingface.co."
        raise UserError(f"The Hub refused {name}: {str(error).splitlines()[0]} {advice} {kept}") from error
    except HFValidationError as error:
        raise UserError(f"hub={name}: {error}") from error
    except HTTPError as error:
        raise UserError(
            f"The Hugging Face Hub cannot be reached ({error or type(error).__name__}): check the network, and HF_ENDPOINT if "
            f"it is set. {kept}"
        ) from error
