"""A checkpoint on the Hugging Face hub: its files and a model card in one commit."""

from __future__ import annotations

import re
from pathlib import Path

from framework.artifacts import MANIFEST
from framework.errors import RunFailed, UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CARD = "README.md"


def push(checkpoint: Path, hub_id: str, card: str, private: bool = False, revision: str | None = None) -> str:
    """Create the repository, and the branch `revision`, if they are not there; commit all files; return where.

    A README.md of the checkpoint's own stays. Raises UserError for a name that is none, without a token, or where the
    hub cannot be reached or refuses; RunFailed if it fails in the middle: nothing is committed then.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise UserError("hub id", hub_id, "must be owner/name")
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_session, get_token, utils
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE", "1", f"must be unset to push to {constants.ENDPOINT}")
    if get_token() is None:
        raise UserError("HF_TOKEN", "not set", "must be a token that may write: set it, or `hf auth login`")
    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # of whichever HTTP library it is built on
        reason = " ".join(str(error).split())[:160]
        raise UserError("HF_ENDPOINT", constants.ENDPOINT, f"the hub cannot be reached: {reason}") from None
    names = {file.relative_to(checkpoint).as_posix(): file for file in sorted(checkpoint.rglob("*")) if file.is_file()}
    names.pop(MANIFEST, None)
    files = [CommitOperationAdd(name, str(file)) for name, file in names.items()]
    if CARD not in names:
        files.append(CommitOperationAdd(CARD, card.encode()))
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    api, begun = HfApi(), False
    try:
        api.create_repo(hub_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(hub_id, branch=revision, exist_ok=True)
        begun = True
        message = f"{checkpoint.name}: {len(files)} files"
        done = api.create_commit(hub_id, files, commit_message=message, revision=revision)
    except HFValidationError as error:
        raise UserError("hub id", hub_id, " ".join(str(error).split())[:200]) from None
    except HfHubHTTPError as error:
        code, reason = error.response.status_code, " ".join(str(error.server_message or error).split())[:200]
        if code in (401, 403):
            allowed = f"must be one that may write to {hub_id}: {reason}"
            raise UserError("HF_TOKEN", f"refused ({code})", allowed) from None
        if not begun:
            raise UserError("hub id", hub_id, f"the hub refuses it ({code}): {reason}") from None
        raise RunFailed(f"pushing to {hub_id} failed ({code}), nothing is committed: {reason}") from error
    except (OSError, RuntimeError) as error:  # of the connection, or of the store that large files go to
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(f"pushing to {hub_id} failed, nothing is committed: {reason}") from error
    return str(done.commit_url)
