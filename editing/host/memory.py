"""How the host and PyTorch say that a device has no memory left."""

from __future__ import annotations

import comfy.model_management


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this error means that something was too large for the device.

    CUDA has a class for it; Apple's GPUs, and CUDA in some calls, say it in words only.
    """
    kind = comfy.model_management.OOM_EXCEPTION
    if kind is not Exception and isinstance(error, kind):
        return True
    known = getattr(comfy.model_management, "is_oom", None)  # newer ComfyUI
    if known is not None and known(error):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
