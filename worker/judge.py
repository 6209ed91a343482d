"""Judges videos with the moderation pipeline and a model server: what ``moderator.py`` asks for.

The worker's process; one object, used by all lanes. The pipeline decodes in a process of its own, to which the bytes of
the video are handed as it asks for them. Must not know queues, leases or where results go.
"""

import time
from collections.abc import Callable
from typing import BinaryIO

import httpx

from media.errors import MediaError
from moderation.asking import Cancelled as NoLongerWanted
from moderation.asking import ModelBusy, ModelError
from moderation.asking import NotSetUp as ModelNotSetUp
from moderation.client import Client
from moderation.pipeline import Outcome, moderate
from moderation.policy_file import load_policy
from moderation.report import render
from moderation.sampling import Bounds, Sampling
from worker.moderator import Cancelled, CannotBeJudged, Judgement, NotSetUp, ServerBusy, TryFailed
from worker.settings import WorkerSettings

_ASKING = 5.0
_LONGEST_REASON = 500


class Judge:
    """The pipeline with one policy and one model server."""

    def __init__(self, settings: WorkerSettings) -> None:
        """:raises PolicyError: if the policy cannot be used; it is a ValueError."""
        self._settings = settings
        self._policy = load_policy(settings.policy)
        self._sampling = Sampling(settings.fps, settings.max_frames, settings.frame_side)
        self._bounds = Bounds(
            settings.decode_timeout, settings.decode_memory, settings.max_pixels, settings.max_seconds
        )
        self._client = Client(
            settings.server_url,
            settings.model,
            settings.vllm_api_key,
            timeout=settings.answer_timeout,
            patience=settings.patience,
            priority="batch",
        )
        self._model: str | None = None
        """What the client was last known to ask."""

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def ready(self) -> str | None:
        """See :class:`worker.moderator.Moderator`. Ready is who lists models, among them the one to ask.

        Which that is, where no setting says so, is found out here: never at the cost of a job.
        """
        end = time.monotonic() + _ASKING
        key, url = self._settings.vllm_api_key, f"{self._settings.server_url}/v1/models"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = httpx.get(url, headers=headers, timeout=_ASKING, trust_env=False)
            if answer.status_code in (401, 403):
                return f"{url} wants another key than VLLM_API_KEY: {answer.status_code}"
            if answer.status_code != 200:
                return f"{url} answers {answer.status_code}"
            names = [str(entry["id"]) for entry in answer.json()["data"]]
        except httpx.HTTPError as error:
            return f"no answer from {url}: {str(error) or type(error).__name__}"
        except (httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            return f"{url} is no list of models: {error}"
        if not names or (self._settings.model and self._settings.model not in names):
            return f"{url} lists no model {self._settings.model or 'at all'}"
        if self._model is not None and self._model not in names:
            self._client.forget(self._model)
        try:
            self._client.connect(lambda: time.monotonic() > end)
            self._model = self._client.model
        except ModelError as error:
            return str(error)
        except NoLongerWanted:
            return f"{url} did not answer within {_ASKING:g} seconds"
        return None

    def judge(self, video: BinaryIO, job_id: str, name: str, cancelled: Callable[[], bool]) -> Judgement:
        """See :class:`worker.moderator.Moderator`."""
        try:
            outcome = moderate(
                video,
                self._policy,
                self._client,
                name=name,
                sampling=self._sampling,
                bounds=self._bounds,
                concurrency=self._settings.requests,
                cancelled=cancelled,
            )
        except MediaError as error:
            raise CannotBeJudged(str(error)) from error
        except ModelBusy as error:
            raise ServerBusy(str(error), error.retry_after) from error
        except ModelNotSetUp as error:
            raise NotSetUp(str(error)) from error
        except ModelError as error:
            raise TryFailed(str(error)) from error
        except NoLongerWanted as error:
            raise Cancelled(job_id) from error
        if not outcome.result.counts.judged:  # which is no result, whatever the policy says of what was not seen
            why = {one.reason for one in outcome.result.not_seen}
            raise TryFailed(f"no frame could be judged: {'; '.join(sorted(why)) or 'there is none'}"[:_LONGEST_REASON])
        return _judgement(outcome)


def _judgement(outcome: Outcome) -> Judgement:
    result = outcome.result
    facts = {
        "decision": result.decision,
        "severity": result.severity or "none",
        "summary": result.summary,
        "policy": result.policy.name,
        "policy_version": result.policy.version,
        "model": result.model.name,
    }
    return Judgement(result.to_json().encode(), render(result, outcome.thumbnails).encode(), facts)
