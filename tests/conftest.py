"""Settings that all tests share."""

from hypothesis import settings

# A first example may wait for imports or a busy machine; how long an example takes is not what these tests are about.
settings.register_profile("ci", deadline=None)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile("ci")
