"""One gateway of all pocket models for this folder, and OpenAI's own client to ask it with."""

from collections.abc import Iterator

import openai
import pytest

from tests.conftest import _starter
from tests.support.gateway import GatewayProcess

AT_ONCE, WAITING = 4, 4
"""Requests that the text model answers at once here, and that may wait for it besides."""
MAX_BODY = 400_000
SEND_TIMEOUT = 1
"""Seconds for which a client may read nothing."""


def client_of(gateway: GatewayProcess) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=120, http_client=http)


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    starter = _starter(lambda: tmp_path_factory.mktemp("openai"))
    models = {"deepseek": {"max_batch_size": AT_ONCE}}
    settings = {"queue_per_model": WAITING, "max_body": MAX_BODY, "send_timeout": SEND_TIMEOUT}
    yield next(starter)(models=models, **settings).preloaded()
    next(starter, None)


@pytest.fixture(scope="package")
def client(served: GatewayProcess) -> Iterator[openai.OpenAI]:
    with client_of(served) as client:
        yield client
