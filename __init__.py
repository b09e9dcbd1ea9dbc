"""Reweave: text-driven editing of real video, as ComfyUI nodes.

Nothing is imported here at load time: the host imports every pack before it shows its window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import ReweaveExtension

WEB_DIRECTORY = "./js"


async def comfy_entrypoint() -> ReweaveExtension:
    """Return the extension whose nodes ComfyUI registers."""
    from .nodes import ReweaveExtension

    return ReweaveExtension()
