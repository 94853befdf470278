"""What ``DeviceRequests`` become: CDI devices (``--device vendor.com/class=name``) and GPUs (``--gpus``).

A request names a driver, or capabilities of which a driver must have all of one group. The drivers are dockerd's:
"cdi", "nvidia" and "amd". GPUs come by CDI where a file describes any (``nvidia.com/gpu``, ``amd.com/gpu``), as newer
versions of Docker do it; otherwise, as in 28, the vendor's own hook or runtime, if it is installed, is told by
environment variables.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Final

from seacan.engine import cdi
from seacan.engine.config import DeviceRequest
from seacan.engine.options import EngineOptions
from seacan.errors import InvalidParameter, System
from seacan.runtime.spec import Hook, Hooks, Spec

NVIDIA_HOOK: Final = "nvidia-container-runtime-hook"
AMD_RUNTIME: Final = "amd-container-runtime"
_NVIDIA_DRIVER_CAPABILITIES: Final = frozenset({"compute", "compat32", "graphics", "utility", "video", "display"})
_GPUS: Final = {
    "nvidia": frozenset({"gpu", "nvidia"}) | _NVIDIA_DRIVER_CAPABILITIES,
    "amd": frozenset({"gpu", "amd"}),
}
_NO_FOLDERS: Final = "no CDI specification directories specified"


def cdi_folders(options: EngineOptions) -> list[str]:
    """Where CDI files lie; none where CDI is switched off, by ``--feature cdi=false`` or an empty folder."""
    if not options.features.get("cdi", True) or options.cdi_spec_dirs == [""]:
        return []
    return list(options.cdi_spec_dirs)


def discovered(options: EngineOptions) -> tuple[list[str], list[str]]:
    """The full names of the CDI devices there are, and warnings about files that describe none."""
    folders = cdi_folders(options)
    if not options.features.get("cdi", True):
        return [], []
    if not folders:
        return [], [f"CDI cache initialization failed: {_NO_FOLDERS}"]
    registry = cdi.scan(folders)
    warnings = [
        f"CDI: Error associated with spec file {path}: {error}"
        for path, errors in registry.errors.items()
        for error in errors
    ]
    return list(registry.devices), warnings


def inject(spec: Spec, requests: Iterable[DeviceRequest], options: EngineOptions) -> None:
    """Give a container what it requests. Raises System in dockerd's words (whatever fails here is the server's)."""
    try:
        for request in requests:
            _inject(spec, request, options)
    except InvalidParameter as error:
        raise System(error.message) from None


def _inject(spec: Spec, request: DeviceRequest, options: EngineOptions) -> None:
    if request.driver == "cdi" and options.features.get("cdi", True):
        if request.count:
            raise InvalidParameter("unexpected count in CDI device request")
        if request.options:
            raise InvalidParameter("unexpected options in CDI device request")
        if request.device_ids:
            _inject_cdi(spec, request.device_ids, options)
        return
    vendor = _vendor(options)
    if vendor is not None and request.driver in ("", vendor):
        for group in request.capabilities or []:
            if _GPUS[vendor].issuperset(group):
                _inject_gpus(spec, vendor, request, group, options)
                return
    groups = " ".join(f"[{' '.join(group)}]" for group in request.capabilities or [])
    raise InvalidParameter(f'could not select device driver "{request.driver}" with capabilities: [{groups}]')


def _inject_cdi(spec: Spec, names: Sequence[str], options: EngineOptions) -> None:
    folders = cdi_folders(options)
    try:
        if not folders:
            raise InvalidParameter(_NO_FOLDERS)
        cdi.inject(spec, cdi.scan(folders), names)
    except (InvalidParameter, System) as error:
        raise System(f"CDI device injection failed: {error.message}") from None


def _described(vendor: str, options: EngineOptions) -> bool:
    prefix = f"{vendor}.com/gpu="
    return any(name.startswith(prefix) for name in cdi.scan(cdi_folders(options)).devices)


def _vendor(options: EngineOptions) -> str | None:
    """Whose GPUs this host has, if somebody has installed what makes them usable."""
    if _described("nvidia", options) or shutil.which(NVIDIA_HOOK):
        return "nvidia"
    if _described("amd", options) or shutil.which(AMD_RUNTIME):
        return "amd"
    return None


def _inject_gpus(
    spec: Spec, vendor: str, request: DeviceRequest, capabilities: Sequence[str], options: EngineOptions
) -> None:
    if request.count and request.device_ids:
        raise InvalidParameter("cannot set both Count and DeviceIDs on device request")
    wanted = request.device_ids or (["all"] if request.count < 0 else [str(n) for n in range(request.count)])
    if _described(vendor, options):
        names = [name if cdi.qualified(name) else f"{vendor}.com/gpu={name}" for name in wanted]
        if names:
            _inject_cdi(spec, names, options)
        return
    assert spec.process is not None
    spec.process.env.append(f"{vendor.upper()}_VISIBLE_DEVICES={','.join(wanted) or 'void'}")
    if vendor != "nvidia":
        return
    chosen = [one for one in capabilities if one in _NVIDIA_DRIVER_CAPABILITIES]
    if chosen:
        spec.process.env.append(f"NVIDIA_DRIVER_CAPABILITIES={','.join(chosen)}")
    path = shutil.which(NVIDIA_HOOK)
    if path is None:
        raise System(f'exec: "{NVIDIA_HOOK}": executable file not found in $PATH')
    spec.hooks = spec.hooks or Hooks()
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    spec.hooks.prestart.append(Hook(path=path, args=[NVIDIA_HOOK, "prestart"], env=environment))
