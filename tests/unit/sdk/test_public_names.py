"""The public package."""

import subprocess
import sys

import kvferry


def test_every_public_name_is_there() -> None:
    """Each name of __all__ can be had, and nothing else."""
    for name in kvferry.__all__:
        assert getattr(kvferry, name) is not None
    assert not hasattr(kvferry, "no_such_name")
    assert set(kvferry.__all__) <= set(dir(kvferry))


def test_import_is_light() -> None:
    """Importing the package, and its clients, loads no torch; the package alone loads no grpc either."""
    code = (
        "import sys, kvferry\n"
        "assert not {'grpc', 'numpy', 'torch'} & sys.modules.keys(), 'package'\n"
        "kvferry.EngineClient, kvferry.SyncRouterClient\n"
        "assert not {'torch'} & sys.modules.keys(), 'clients'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (0, "")
