"""Utilization, memory use and temperature of the NVIDIA GPUs of this machine."""

from __future__ import annotations

import threading
import time
from typing import Any

from llm_lab.safe_text import printable

AT_MOST_EVERY = 0.9  # seconds between two readings, regardless of the number of pages
_lock = threading.Lock()
_last: tuple[float, list[dict[str, Any]]] = (0.0, [])
_there: bool | None = None  # whether there is a driver; not checked again if there is none


def read_gpus() -> list[dict[str, Any]]:
    """Return a row for each GPU: name, use (a share), memory used and in total (bytes), temperature (°C), power (W).

    What a GPU does not report is None. Without an NVIDIA driver, the list is empty.
    """
    global _last, _there
    with _lock:
        if _there is False:
            return []
        if time.monotonic() - _last[0] < AT_MOST_EVERY:
            return _last[1]
        import pynvml

        if _there is None:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                _there = False
                return []
            _there = True
        _last = (time.monotonic(), _read(pynvml))
        return _last[1]


def _read(nvml: Any) -> list[dict[str, Any]]:
    def asked(ask: Any, *given: Any) -> Any:
        try:
            return ask(*given)
        except nvml.NVMLError:
            return None

    rows = []
    for index in range(asked(nvml.nvmlDeviceGetCount) or 0):
        handle = asked(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        memory, use = asked(nvml.nvmlDeviceGetMemoryInfo, handle), asked(nvml.nvmlDeviceGetUtilizationRates, handle)
        power, name = asked(nvml.nvmlDeviceGetPowerUsage, handle), asked(nvml.nvmlDeviceGetName, handle)
        rows.append(
            {
                "name": printable(name.decode() if isinstance(name, bytes) else str(name)),
                "use": use.gpu / 100 if use else None,
                "used": int(memory.used) if memory else None,
                "total": int(memory.total) if memory else None,
                "celsius": asked(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
                "watts": power / 1000 if power is not None else None,
            }
        )
    return rows
