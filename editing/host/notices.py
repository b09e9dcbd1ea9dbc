"""Short texts for the artist: on the node while it runs, and in the console."""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("reweave")


def say(text: str) -> None:
    """Shows `text` on the running node (where there is a server) and logs it."""
    LOGGER.info("Reweave: %s", text)
    _show(text)


def warn(text: str) -> None:
    """As `say`, louder: the run goes on but probably does not do what was meant."""
    LOGGER.warning("Reweave: %s", text)
    _show(text)


def _show(text: str) -> None:
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, context.node_id)
