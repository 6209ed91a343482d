"""Judges videos with the moderation pipeline and a model server.

The worker's process; all job threads share one object. The pipeline decodes in a process of its own, which asks for the
video's bytes as it needs them. Must not know queues, leases or where results go.
"""

import time
from collections.abc import Callable
from typing import BinaryIO

import httpx

from moderation.asking import Cancelled, ModelError, ModelFailed
from moderation.client import Client
from moderation.frame_source import DecodeLimits, FrameSampling
from moderation.pipeline import Outcome, moderate_video
from moderation.policy_file import load_policy
from moderation.report import render_report
from worker.moderator import Judgement
from worker.settings import WorkerSettings

_SERVER_TIMEOUT = 5.0
_LONGEST_REASON = 500


class PipelineModerator:
    """The pipeline with one policy and one model server. See :class:`worker.moderator.Moderator`."""

    def __init__(self, settings: WorkerSettings) -> None:
        """:raises PolicyError: if the policy cannot be used; it is a ValueError."""
        self._settings = settings
        self._policy = load_policy(settings.policy)
        self._sampling = FrameSampling(settings.fps, settings.max_frames, settings.frame_side)
        self._limits = DecodeLimits(
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
        """The model that the client found last."""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def find_server_problem(self) -> str | None:
        """Return why the server cannot be asked, or None if it lists the model to ask.

        Where no setting names the model, the client chooses it here, so that no job pays for a failure.
        """
        end = time.monotonic() + _SERVER_TIMEOUT
        key, url = self._settings.vllm_api_key, f"{self._settings.server_url}/v1/models"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = httpx.get(url, headers=headers, timeout=_SERVER_TIMEOUT, trust_env=False)
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
            self._client.forget_model(self._model)
        try:
            self._client.find_model(lambda: time.monotonic() > end)
            self._model = self._client.model
        except ModelError as error:
            return str(error)
        except Cancelled:
            return f"{url} did not answer within {_SERVER_TIMEOUT:g} seconds"
        return None

    def judge_video(self, video: BinaryIO, name: str, cancelled: Callable[[], bool]) -> Judgement:
        """See :class:`worker.moderator.Moderator`."""
        outcome = moderate_video(
            video,
            self._policy,
            self._client,
            name=name,
            sampling=self._sampling,
            limits=self._limits,
            concurrency=self._settings.requests,
            cancelled=cancelled,
        )
        if not outcome.result.counts.judged:  # no result, even if the policy allows parts that were not seen
            why = {one.reason for one in outcome.result.not_seen}
            raise ModelFailed(
                f"no frame could be judged: {'; '.join(sorted(why)) or 'there is none'}"[:_LONGEST_REASON]
            )
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
    return Judgement(result.to_json().encode(), render_report(result, outcome.thumbnails).encode(), facts)
