"""The copiers of a data plane, shared by its paths, so that together they keep to its threads and multiprocessors."""

import threading

from kvferry.device.copying import Copier
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_copy import CudaCopier
from kvferry.device.native import HostCopier


class Copiers:
    """Makes each copier when it is first needed. Any thread may ask."""

    def __init__(self, thread_count: int, sm_count_max: int | None, wake_descriptor: int) -> None:
        """``wake_descriptor`` is told of the end of copies between host memories; it is closed after the copiers."""
        self._thread_count = thread_count
        self._sm_count_max = sm_count_max
        self._wake_descriptor = wake_descriptor
        self._lock = threading.Lock()
        self._host: Copier | None = None
        self._cuda: dict[int, CudaCopier] = {}

    def on(self, device: CudaDevice | None) -> Copier:
        """The copier that runs on a device; None: on threads.

        Raises:
            ConfigInvalid: there is no compiler for the device's kernels.
            TransportFailed: the device or the compiler failed.
        """
        with self._lock:
            if device is None:
                if self._host is None:
                    self._host = HostCopier(self._thread_count, self._wake_descriptor)
                return self._host
            if device.index not in self._cuda:
                self._cuda[device.index] = CudaCopier(device, sm_count_max=self._sm_count_max)
            return self._cuda[device.index]

    def lost_device(self) -> str | None:
        """Which device has failed, and how; None while all work. Nothing but the end of the process cures it."""
        with self._lock:
            failures = {index: copier.failure for index, copier in self._cuda.items()}
        found = (f"cuda:{index} has failed: {failure.message}" for index, failure in failures.items() if failure)
        return next(found, None)

    def close(self) -> None:
        """End every copy. Twice does no harm."""
        with self._lock:
            for copier in [*self._cuda.values(), *([self._host] if self._host is not None else [])]:
                copier.close()
