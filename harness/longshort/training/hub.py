"""Uploading a finished checkpoint to the Hugging Face Hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place

from longshort.errors import UserError


def writable_repository(name: str, *, public: bool) -> str:
    """Make sure that a model repository exists and can be written to, with the token of this machine.

    Args:
        name: NAME or OWNER/NAME; without an owner it is the token's user.
        public: whether a new repository is public instead of private.

    Returns:
        OWNER/NAME.

    Raises:
        UserError: there is no token, or it does not give write access; the hub cannot be reached.
    """
    api = HfApi()
    try:
        validate_repo_id(name)
        api.whoami()
        repository = str(api.create_repo(name, private=not public, exist_ok=True).repo_id)
        api.auth_check(repository, write=True)
    except HFValidationError as error:
        raise UserError(f"push_to_hub is '{name}'; it must be NAME or OWNER/NAME.", "setting", "push_to_hub") from error
    except Exception as error:  # no token, a refusal, a connection: the client has many classes for them
        raise UserError(
            f"push_to_hub: no write access to '{name}' on {api.endpoint} ({_reason(error)}). Log in with a token that "
            "has write access (hf auth login), or omit --push-to-hub.",
            "hub",
            "push_to_hub",
        ) from error
    return repository


def push(folder: Path, name: str, *, public: bool) -> str:
    """Upload a checkpoint folder and return the address of the commit.

    Raises:
        UserError: it was not uploaded; the folder stays as it is.
    """
    try:
        repository = writable_repository(name, public=public)
        message = f"Upload {folder.name}, trained with longshort"
        return str(HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
    except Exception as error:  # whatever it is, the checkpoint is complete
        command = shlex.join(["hf", "upload", name, str(folder), *([] if public else ["--private"])])
        raise UserError(
            f"The checkpoint is complete in {folder}, but was not uploaded to '{name}' ({_reason(error)}). "
            f"Repeat the upload with: {command}",
            "hub",
            "push_to_hub",
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
