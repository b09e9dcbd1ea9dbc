"""A progress bar for loops of our own, which must look for the Cancel button themselves."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def progress(total: int) -> Callable[[int], None]:
    """A function (done) that moves the node's bar of `total` steps and stops on Cancel."""
    bar = comfy.utils.ProgressBar(total)
    shown = 0

    def tick(done: int) -> None:
        nonlocal shown
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done > shown:
            shown = done
            bar.update_absolute(done)

    return tick
