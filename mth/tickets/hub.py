"""Tickets on the Hugging Face hub. Login and address are those of huggingface_hub."""

from collections.abc import Sequence
from pathlib import Path

from mth.foundations.errors import UserError, first_line


def push(folder: Path, hub_id: str, private: bool | None = None) -> str:
    """Upload a folder to a model repository, which is made if it is new. Returns its address. Raises UserError if the hub refuses."""
    import httpx
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(hub_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=hub_id, folder_path=folder, commit_message="Upload a sparse ticket"))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(f"{hub_id}: the hub does not take the upload ({first_line(error, 160)}); log in with: hf auth login") from error


def fetch(hub_id: str, files: Sequence[str]) -> Path:
    """The folder with these files of a model repository. Raises UserError if the hub does not give it."""
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(files)))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(f"ticket {hub_id} is no folder here, and the hub does not give it ({first_line(error, 160)})") from error
