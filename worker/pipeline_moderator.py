"""Judges videos with the moderation pipeline and a model server.

The worker's process; all job threads share one object. The pipeline decodes in a process of its own, which asks for the
video's bytes as it needs them. Must not know queues, leases or where results go.
"""

import time
from collections.abc import Callable
from typing import BinaryIO

from moderation.asking import Cancelled, ModelError, ModelFailed, NotSetUp
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

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def find_server_problem(self) -> str | None:
        """Return why the server cannot be asked, or None if it lists the model to ask.

        Where no setting names the model, the client chooses it here, so that no job pays for a failure.
        """
        end = time.monotonic() + _SERVER_TIMEOUT
        try:
            self._client.check_server(lambda: time.monotonic() > end)
        except NotSetUp as error:
            return f"{error}; see VLLM_URL and VLLM_API_KEY"
        except ModelError as error:
            return str(error)
        except Cancelled:
            return f"{self._client.server} did not answer within {_SERVER_TIMEOUT:g} seconds"
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
