"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A first example may wait for imports or a busy machine; how long an example takes is not what these tests are about.
settings.register_profile("ci", deadline=None)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile("ci")

_PYTESTS_OWN = "PYTEST_CURRENT_TEST"


@pytest.fixture(autouse=True, scope="module")
def environment_as_before() -> Iterator[None]:
    """Take back what a module's tests leave in the environment: transports set their libraries' settings there, which
    processes that later modules start would take for the user's."""
    before = {name: value for name, value in os.environ.items() if name != _PYTESTS_OWN}
    yield
    for name in os.environ.keys() - before.keys() - {_PYTESTS_OWN}:
        del os.environ[name]
    os.environ.update(before)
