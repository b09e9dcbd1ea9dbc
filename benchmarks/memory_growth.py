"""Peak memory of one edit in a process of its own: `memory_growth.py FRAMES JOINT` prints bytes.

Called by the benchmark `tokenflow`, once for every length of clip.
"""

from __future__ import annotations

import json
import sys

from inprocess import load_pack

FRAMES_PER_PASS, INTERVAL, SIZE = 2, 8, 32


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
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
        before = peak_bytes()
        edit_once(edited, inversion, inversion.sigmas)
        latents = inversion.latents.numel() + inversion.clean.numel()
        held = 4 * (latents + images.numel())
        print(json.dumps({"peak": peak_bytes(), "before": before, "clip": held}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
