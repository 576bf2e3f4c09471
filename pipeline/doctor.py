"""What this machine is, what it can run, and whether its timings can be trusted."""

from typing import Any

from latency.host import this_host, version_of
from latency.sampling import tick_ns
from latency.selftest import last

_PACKAGES = ("edgebuild", "torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "nncf", "optuna", "numpy")


def examine() -> dict[str, Any]:
    """{"host", "versions", "clock_ns", "selftest", "problems"}; each problem says what to do."""
    host = this_host()
    versions = {name: version_of(name) for name in _PACKAGES}
    tested = last(host.key)
    problems = [f"{name} is not installed: pip install {name}" for name, version in versions.items() if version is None]
    if host.governor not in (None, "performance"):
        problems.append(
            f"the frequency governor is {host.governor!r}: timings wander with it; `sudo cpupower frequency-set -g "
            "performance` while you measure"
        )
    if versions["torch"] and versions["torchvision"] and (trouble := _torchvision_trouble()):
        problems.append(trouble)
    if tested is None:
        problems.append("whether timings can be trusted here was never tested: `edgebuild latency selftest`")
    elif tested["unrest"]:
        problems.append(f"at the last selftest, {tested['unrest']}: end what else runs here and test again")
    return {
        "host": host.as_dict(),
        "bf16": host.has_bf16,
        "versions": versions,
        "clock_ns": tick_ns(),
        "selftest": tested,
        "problems": problems,
    }


def _torchvision_trouble() -> str | None:
    from models.torchvision_ops import operators_load

    if operators_load():
        return None
    return (
        "torchvision's compiled operators do not load beside this torch; edgebuild uses its Python parts only and goes "
        "on, other programs may not: install the torchvision build from the same index as torch"
    )
