"""One local AWS for all tests of the worker in a process; each test has its own names in it."""

from collections.abc import Iterator

import pytest

from tests.worker.aws import Aws, aws_server


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with aws_server(tmp_path_factory.mktemp("aws")) as server:
        yield server
