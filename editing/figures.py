"""Plots as pictures that nodes can hand on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def drawn(draw: Callable[[Any], None], width: int = 800, height: int = 400) -> Tensor:
    """A plot as a picture -> [1,height,width,3] float32 in 0..1.

    Args:
        draw: gets matplotlib's Axes.
        width, height: pixels.
    """
    # not pyplot: it keeps global state and may open windows
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    columns, rows = canvas.get_width_height()
    return (pixels.view(rows, columns, 4)[..., :3].float() / 255)[None]
