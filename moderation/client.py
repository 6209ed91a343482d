"""Asks a model through OpenAI's HTTP interface: Switchyard's ``/v1``, vLLM or another server. For the worker and CLI.

Requests run on an event loop in the client's own thread, so that a cancelled request is dropped at once and the server
can stop. While the server is busy, requests are repeated for a bounded time. Must not know policies.
"""

import asyncio
import base64
import concurrent.futures
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import httpx

from moderation.asking import (
    Cancelled,
    FrameRefused,
    Message,
    ModelBusy,
    ModelFailed,
    ModelRefused,
    NotSetUp,
    Prompt,
    Reply,
)
from moderation.frame_source import Frame
from utils.error_responses import REQUEST_FAILED, error_code, retry_after

_BUSY = (408, 425, 429, 502, 503)
_FAILED = (500, 504)
_NOT_SET_UP = (401, 403, 404)
_MOST_FAILURES = 3  # per request; waits for a busy server do not count
_OF_THE_FRAME = (413, 415, 422)
_CONNECTING = 10.0
_LOOK = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE, _LEAST_PAUSE = 0.5, 30.0, 0.5
Made = TypeVar("Made")


class Client:
    """The model ``model`` of the server at ``url``; None means its first vision model, or its only model.

    :param timeout: seconds that one answer may take.
    :param patience: seconds for which each question is repeated while the server is busy or gone.
    :raises ModelError: from :meth:`find_model` and :meth:`ask_model`. Use as a context manager, or :meth:`close` it.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        patience: float = 300.0,
        priority: str | None = None,
    ) -> None:
        self.server = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._wanted = model
        self._patience = patience
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        if priority is not None:
            self._headers["X-Priority"] = priority
        self._lock = threading.Lock()
        self._model: str | None = None
        """The model that is asked, None until it is found."""
        self._limits: dict[str, Any] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="model-client", daemon=True)
        self._thread.start()
        self._http = httpx.AsyncClient(
            base_url=self.server,
            trust_env=False,
            headers=self._headers,
            timeout=httpx.Timeout(timeout, connect=_CONNECTING),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=15),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel running requests and close connections. May be called again."""
        with self._lock:
            if self._loop.is_closed():
                return
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    async def _finish(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    # -- the server ----------------------------------------------------------------------------------------------------

    @property
    def at_once(self) -> int | None:
        """How many requests the server answers at once for this model, or None."""
        found = self._limits.get("max_batch_size")
        size = found.get(self._model) if isinstance(found, dict) else None
        return size if isinstance(size, int) and size > 0 else None

    @property
    def most_media(self) -> int | None:
        """How many pictures the server takes in one request, or None."""
        found = self._limits.get("max_media_per_request")
        return found if isinstance(found, int) and found > 0 else None

    def find_model(self, cancelled: Callable[[], bool] = bool) -> str:
        """Return the model to ask. Find it and the server's limits, unless they are known.

        :raises ModelError: if the server does not answer, or has no such model. :raises Cancelled: when
            ``cancelled()``.
        """
        return self._model or self._choose_model(self._list_models(cancelled, self._patience), cancelled)

    def check_server(self, cancelled: Callable[[], bool] = bool) -> None:
        """Ask the server once for its models, without repeating. Choose the model anew if it has gone.

        :raises ModelError: if the server does not answer, or does not list the model. :raises Cancelled: when
            ``cancelled()``.
        """
        names = self._list_models(cancelled, patience=0.0)
        if not names or (self._wanted and self._wanted not in names):
            raise ModelRefused(f"{self.server}/v1/models lists no model {self._wanted or 'at all'}")
        if self._model not in names:
            self._choose_model(names, cancelled)

    def _list_models(self, cancelled: Callable[[], bool], patience: float) -> list[str]:
        try:
            listed = self._wait(self._patiently(lambda: self._http.get("/v1/models"), patience), cancelled)
            return [str(entry["id"]) for entry in listed.json()["data"]]
        except FrameRefused as error:  # by its status; there is no frame here
            raise ModelRefused(str(error)) from None
        except (ValueError, KeyError, TypeError):
            raise ModelRefused(f"{self.server}/v1/models is no list of models; is it a model server?") from None

    def _choose_model(self, names: list[str], cancelled: Callable[[], bool]) -> str:
        """Choose among the models that the server lists, and read its limits. Return the model's name."""
        limits = self._wait(self._vision(), cancelled)
        model = self._wanted
        if model is None:
            seeing = [name for name in limits.get("models", ()) if name in names]
            if not names or (len(names) > 1 and not seeing):
                known = f"it has {', '.join(names)}" if names else "it has none"
                raise ModelRefused(f"name the model to ask at {self.server}: {known}")
            model = (seeing or names)[0]
        self._limits, self._model = limits, model  # in this order: a known model has limits
        return model

    async def _vision(self) -> dict[str, Any]:
        """Return Switchyard's facts about its vision models; empty for other servers."""
        try:
            said = (await self._http.get("/health")).json()["vlm_config"]
            return dict(said) if isinstance(said, dict) else {}
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return {}

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask_model(self, prompt: Prompt, cancelled: Callable[[], bool] = bool) -> Reply:
        """Return the model's reply. See :class:`moderation.asking.Asker`."""
        model = self.find_model(cancelled)
        body = {
            "model": model,
            "messages": [_message(message) for message in prompt.messages],
            "temperature": 0,
            "max_tokens": prompt.max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answers", "schema": prompt.schema, "strict": True},
            },
        }
        try:
            answer = self._wait(
                self._patiently(lambda: self._http.post("/v1/chat/completions", json=body), self._patience), cancelled
            )
        except NotSetUp:  # the server may have lost the model: look again at the next request
            if self._model == model:
                self._model = None
            raise
        try:
            data = answer.json()
            choice = data["choices"][0]
            usage = data.get("usage") or {}
            return Reply(
                str(choice["message"]["content"] or ""),
                choice.get("finish_reason") == "length",
                int(usage.get("prompt_tokens") or 0),
                int(usage.get("completion_tokens") or 0),
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return Reply(f"(no chat completion: {answer.text[:200]})")

    async def _patiently(
        self, send: Callable[[], Coroutine[Any, Any, httpx.Response]], patience: float
    ) -> httpx.Response:
        """Return a good response. Repeat while the server is busy or gone, for ``patience`` seconds, and a few times if
        it fails: a runner may have died over this request.

        :raises ModelBusy: if the server is busy for too long; with its ``Retry-After``.
        :raises ModelFailed: if it fails several times. :raises ModelRefused: if it will not answer.
        :raises FrameRefused: if the frames are the cause.
        """
        deadline, pause, failures = time.monotonic() + patience, _FIRST_PAUSE, 0
        while True:
            after: float | None = None
            failed = False
            try:
                answer = await send()
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise ModelRefused(f"{self.server!r} is no server's address: {error}") from None
            except httpx.HTTPError as error:
                problem = f"no answer from {self.server}: {str(error) or type(error).__name__}"
                failed = isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout))
            else:
                if answer.status_code == 200:
                    return answer
                problem = f"{self.server} answered {answer.status_code}: {_reason(answer)}"
                if answer.status_code in _OF_THE_FRAME:
                    raise FrameRefused(problem)
                ended = answer.headers.get("x-should-retry") == "false" and answer.status_code == 429  # quota
                after = retry_after(answer)
                if ended:
                    raise ModelBusy(problem, after)
                if answer.status_code in _NOT_SET_UP:
                    raise NotSetUp(problem)
                failed = answer.status_code in _FAILED or error_code(answer) in REQUEST_FAILED
                if not failed and answer.status_code not in _BUSY:
                    raise ModelRefused(problem)
            failures += failed
            if failures >= _MOST_FAILURES:
                raise ModelFailed(f"asked {failures} times: {problem}")
            wait = pause if after is None else max(after, _LEAST_PAUSE)
            wait *= random.uniform(1.0, 1.2)  # spreads the repeated requests
            pause = min(2 * pause, _LONGEST_PAUSE)
            if time.monotonic() + wait > deadline:
                raise ModelFailed(problem) if failed else ModelBusy(problem, after)
            await asyncio.sleep(wait)

    def _wait(self, work: Coroutine[Any, Any, Made], cancelled: Callable[[], bool]) -> Made:
        """Run the work on the client's thread; return its result. :raises Cancelled: when ``cancelled()``."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise Cancelled from None
        try:
            while True:
                try:
                    return future.result(_LOOK)
                except concurrent.futures.TimeoutError:
                    if future.done():
                        raise
                    if cancelled():
                        raise Cancelled from None
                except concurrent.futures.CancelledError:
                    raise Cancelled from None
        finally:
            future.cancel()


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": "".join(str(part) for part in message.parts)}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: str | Frame) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/jpeg;base64,{base64.b64encode(part.picture).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _reason(answer: httpx.Response) -> str:
    """Return a refusal's message from OpenAI's envelope, from vLLM's, or from the plain body."""
    try:
        data = answer.json()
        error = data.get("error", data)
        return str(error["message"] if isinstance(error, dict) else data.get("details") or error)[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.text[:200] or "nothing more"
