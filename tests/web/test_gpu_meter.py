"""The numbers of GPUs are read if there are any, and what a GPU does not report is left out."""

from types import SimpleNamespace

from llm_lab.web import gpu_meter


class DriverError(Exception):
    pass


def refuse(*given):
    raise DriverError


def test_a_gpu_that_reports_no_power_has_its_other_numbers():
    nvml = SimpleNamespace(
        NVMLError=DriverError,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index if index == 0 else refuse(),
        nvmlDeviceGetName=lambda handle: b"H200",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3 * 2**30, total=141 * 2**30),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=87),
        nvmlDeviceGetTemperature=lambda handle, kind: 64,
        nvmlDeviceGetPowerUsage=refuse,
    )
    expected = {"name": "H200", "use": 0.87, "used": 3 * 2**30, "total": 141 * 2**30, "celsius": 64, "watts": None}
    assert gpu_meter._read(nvml) == [expected]


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    import pynvml

    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    monkeypatch.setattr(gpu_meter, "_there", None)
    assert gpu_meter.read_gpus() == []
    assert gpu_meter.read_gpus() == []
