"""A saved folder sent to the Hugging Face hub: read whole first, then in one commit."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from elm_neuro.files import read_file
from elm_neuro.pretrained._card import CARD_FILE, card_of
from elm_neuro.pretrained._folders import CONFIG_FILE, WEIGHTS_FILE, from_pretrained
from elm_neuro.pretrained._kinds import describe
from elm_neuro.pretrained._tensors import weights_of

REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SENT = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE)


def push_to_hub(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Saved by elm_neuro",
    token: str | None = None,
) -> str:
    """Send what :func:`save_pretrained` wrote to the Hugging Face hub; :func:`from_pretrained` reads it from there.

    The folder is read as a whole before anything is sent. Card, configuration and weights go in one commit, what else
    is in the folder does not go; a folder without a card gets one in the repository.

    Args:
        directory: the folder.
        repo_id: "owner/name"; made where there is no such repository.
        private: whether a repository that is made can be seen by its owner only.
        message: of the commit.
        token: of an account that may write there; by default that of ``hf auth login`` or ``$HF_TOKEN``.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ValueError: a file in it is damaged, or `repo_id` is no "owner/name".
        ImportError: huggingface_hub is not installed.
        PermissionError: there is no token.
        ConnectionError: the hub cannot be reached or refuses.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"directory must be a folder that save_pretrained wrote, got {folder}, which is none")
    if not (isinstance(repo_id, str) and REPO_ID.fullmatch(repo_id)):
        raise ValueError(f'repo_id must be "owner/name" on the hub, got {repo_id!r}')
    module = from_pretrained(folder)
    has_card = (folder / CARD_FILE).is_file()
    contents = {name: read_file(folder / name) for name in SENT if has_card or name != CARD_FILE}
    if not has_card:
        contents[CARD_FILE] = card_of(module, describe(module), weights_of(module)).encode()
    if find_spec("huggingface_hub") is None:
        raise ImportError('elm_neuro.pretrained.push_to_hub needs huggingface_hub: pip install "elm-neuro[hub]"')
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it sends with

    token = token or huggingface_hub.get_token()
    if not token:
        raise PermissionError(
            "a token of the hub is needed to push, got none: run hf auth login, or set HF_TOKEN; "
            "https://huggingface.co/settings/tokens makes one that may write"
        )
    api = huggingface_hub.HfApi(token=token, library_name="elm_neuro")
    try:
        address = api.create_repo(repo_id, private=private or None, exist_ok=True)
        api.create_commit(
            repo_id,
            [huggingface_hub.CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=message,
        )
    except (OSError, HTTPError) as error:
        raise ConnectionError(f"{repo_id} could not be pushed: {error}") from error
    return str(address)
