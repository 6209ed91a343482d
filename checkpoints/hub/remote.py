"""Talks to the hub: what a repository holds, where its files are, and what its errors mean.

Uses huggingface_hub for the protocol and its HTTP client (proxies, offline mode). Reads endpoint and token from the
environment at each call. Does not touch the disk.
"""

import os
import re
from dataclasses import dataclass
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, __version__, get_session, get_token, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from checkpoints.hub.records import DownloadError, HubUnreachableError, RemoteFile

NETWORK_ERRORS = (httpx2.RequestError, OfflineModeIsEnabled)
"""Errors of a failed connection, as opposed to an answer that refuses."""

_LIST_SECONDS = 30.0
_MAX_IN_MEMORY = 64 * 2**20
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Repository:
    """A repository at one commit; ``revision`` is the name it was requested by."""

    repo: str
    revision: str
    commit: str
    endpoint: str
    files: dict[str, RemoteFile]

    def url(self, path: str) -> str:
        """Return the URL of a file at the commit, so that a later push changes nothing."""
        return f"{self.endpoint}/{self.repo}/resolve/{self.commit}/{quote(path)}"

    def read(self, path: str) -> bytes:
        """Return a small file's content, unverified. :raises DownloadError: if it is too large or cannot be fetched."""
        if self.files[path].size > _MAX_IN_MEMORY:
            raise DownloadError(f"{self.repo}: {path} is too large ({self.files[path].size} bytes) for what it is")
        try:
            response = get_session().get(self.url(path), headers=headers(), timeout=_LIST_SECONDS)
            hf_raise_for_status(response)
        except (*NETWORK_ERRORS, HfHubHTTPError) as error:
            raise explain(error, self.repo, self.revision) from error
        return response.content


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def headers() -> dict[str, str]:
    """Return request headers, with the user's token if there is one. Content is requested unencoded."""
    plain = {"User-Agent": f"switchyard; hf_hub/{__version__}", "Accept-Encoding": "identity"}
    token = get_token()
    return {**plain, "Authorization": f"Bearer {token}"} if token else plain


def list_repository(repo: str, revision: str) -> Repository:
    """Ask the hub for a repository's files with sizes and digests.

    :raises HubUnreachableError: if the hub does not answer.
    :raises DownloadError: for an unknown or closed repository, or an answer without sizes or digests.
    """
    where = endpoint()
    try:
        info = HfApi(endpoint=where, token=get_token() or False).model_info(
            repo, revision=revision, files_metadata=True, timeout=_LIST_SECONDS
        )
    except (*NETWORK_ERRORS, HfHubHTTPError) as error:
        raise explain(error, repo, revision) from error
    except httpx2.InvalidURL:
        raise DownloadError(f"HF_ENDPOINT is not an address: {where}") from None
    except HFValidationError:
        raise DownloadError(f"{repo!r} is not the name of a repository") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DownloadError(f"{where} does not answer like a model hub; check HF_ENDPOINT") from error
    if not info.sha:
        raise DownloadError(f"{where} does not say which commit {repo}@{revision} is; check HF_ENDPOINT")
    files = {}
    for sibling in info.siblings or []:
        oid = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if sibling.size is None or not _OID.fullmatch(oid or ""):
            raise DownloadError(f"{where} gives no size or digest for {repo}/{sibling.rfilename}; check HF_ENDPOINT")
        files[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size, str(oid))
    return Repository(repo, revision, info.sha, where, files)


def explain(error: Exception, repo: str, revision: str) -> DownloadError:
    """Return an error that says in one line why a request failed and what to do."""
    where = endpoint()
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachableError(f"HF_HUB_OFFLINE is set, so {repo} cannot be asked for; unset it to download")
    if isinstance(error, httpx2.RequestError):
        return HubUnreachableError(f"cannot reach {where}: {_first_line(error)}; check the network or HF_ENDPOINT")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    has_token = bool(get_token())
    if isinstance(error, GatedRepoError):
        access = "the account of HF_TOKEN has no access to it yet" if has_token else "HF_TOKEN is not set"
        return DownloadError(
            f"{repo} is gated and {access}: accept its licence at https://huggingface.co/{repo} "
            "and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(f"{repo} has no revision {revision!r}")
    if isinstance(error, RemoteEntryNotFoundError):
        return DownloadError(f"{repo}@{revision} has no such file: {error.response.url.path}")
    if isinstance(error, RepositoryNotFoundError):
        access = "the account of HF_TOKEN may not see it" if has_token else "it is private: set HF_TOKEN"
        return DownloadError(f"{where} has no repository {repo}, or {access}")
    if status == 401:
        return DownloadError(f"{where} does not accept HF_TOKEN; make a new one or unset it")
    if status == 403:
        return DownloadError(
            f"{where} refuses {repo}: accept its licence at https://huggingface.co/{repo} "
            "and set HF_TOKEN to a token that may read it"
        )
    return DownloadError(f"{where} answered {status or _first_line(error)} for {repo}@{revision}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
