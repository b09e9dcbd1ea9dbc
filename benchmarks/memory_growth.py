"""Peak memory of one edit in a process of its own: `memory_growth.py FRAMES JOINT` prints bytes.

Called by the benchmark `tokenflow`, once for every length of clip.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from inprocess import load_pack

FRAMES_PER_PASS, INTERVAL, SIZE = 2, 8, 32


STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start_of_peak() -> int:
    """Forgets earlier peaks, where the system can (Linux) -> bytes resident now."""
    gc.collect()
    if not RESET.exists():
        return _most_ever()
    RESET.write_text("5")
    return _resident("VmRSS")


def peak_since_start() -> int:
    """Most bytes resident since then."""
    return _resident("VmHWM") if RESET.exists() else _most_ever()


def _resident(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(text.split()[1]) for text in lines if text.startswith(name))


def _most_ever() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(frames: int, joint: int) -> None:
    """Samples one step of TokenFlow with Plug-and-Play on a clip that lies in memory too."""
    load_pack()
    import torch
    from reweave.editing import host
    from reweave.editing.plug_and_play import PlugAndPlay
    from reweave.editing.tokenflow import TokenFlow
    from small_nets import SMALL, clip, edit_once, network

    torch.set_num_threads(1)
    with torch.inference_mode():
        model = network(SMALL)
        images = torch.rand(frames, 8 * SIZE, 8 * SIZE, 3)
        inversion = clip(model, frames, SIZE, steps=2)
        settings = {"interval": INTERVAL, "frames_per_pass": FRAMES_PER_PASS}
        flow = TokenFlow(inversion, max_joint_key_frames=joint, **settings)
        edited = host.attach(host.attach(model, flow), PlugAndPlay(inversion, 1.0, 1.0))
        before = start_of_peak()
        edit_once(edited, inversion, inversion.sigmas)
        latents = inversion.latents.numel() + inversion.clean.numel()
        held = 4 * (latents + images.numel())
        print(json.dumps({"peak": peak_since_start(), "before": before, "clip": held}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
