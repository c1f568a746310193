"""For all tests of this room: Ray, imported aside, and the HTTP API in one process. Files with other clients have their own fixtures."""

import warnings
from collections.abc import AsyncIterator

import httpx
import pytest

from deployments.http_api import build_http_app
from tests.deployments.http_calls import LIMITS
from tests.serving.echo_service import EchoService

with warnings.catch_warnings():  # Ray warns when it is imported; in these tests warnings are errors
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401


@pytest.fixture
def service() -> EchoService:
    """What stands behind the API."""
    return EchoService()


@pytest.fixture
async def client(service: EchoService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API in this process, without a socket."""
    transport = httpx.ASGITransport(build_http_app(lambda: service, LIMITS))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
