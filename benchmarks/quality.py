"""All methods on the same clips, checkpoint, seeds and steps: python dev.py bench quality

Rendered clips with ground truth (8; --full: 40), or a folder of real clips with a prompts file
(--clips DIR). Every finished cell is kept in .cache/quality_cells/, so that a stopped run goes on.
The pages are filled by a whole default run, or with --write; docs/quality.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inprocess import DEMO, HOST, content_of, load_pack

OPTIONS = argparse.ArgumentParser(description=__doc__)
OPTIONS.add_argument("--method", action="append", help="one row of the table; repeat it for more")
OPTIONS.add_argument("--checkpoint", default=DEMO.name, help="name, or a path")
OPTIONS.add_argument("--clips", type=Path, metavar="DIR", help="real clips with a prompts.json")
OPTIONS.add_argument("--full", action="store_true", help="all 40 rendered clips")
OPTIONS.add_argument("--limit", type=int, default=0, help="only the first N clips")
OPTIONS.add_argument("--steps", type=int, help="default: 12 for the demo checkpoint, else 50")
OPTIONS.add_argument("--cfg", type=float, help="default: 2 for the demo checkpoint, else 7.5")
OPTIONS.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels of a frame")
OPTIONS.add_argument("--clip", help="a text encoder file in models/text_encoders, for CLIP scores")
OPTIONS.add_argument("--clip-vision", help="a file in models/clip_vision, for CLIP scores")
OPTIONS.add_argument("--gpu", action="store_true", help="run on the GPU instead of the CPU")
OPTIONS.add_argument("--fresh", action="store_true", help="compute kept cells again")
OPTIONS.add_argument("--write", action="store_true", help="fill the pages from a partial run too")
CHOSEN = OPTIONS.parse_args()
load_pack(CHOSEN.gpu)

import torch
from common import RESULTS, commit, write_result
from editing_runs import EVALUATION, Job, encoded_text, inverted, save_sheet
from ground_truth import UNDEFINED, faults, truth_scores
from quality_clips import Case, Footage, described, load, real_cases, rendered_cases, thumbnails
from quality_methods import METHODS, SOURCE
from quality_tables import Cells, cells_of, fill_page, rows_of, table
from reweave.editing.evaluate import Evidence, measure
from reweave.editing.evaluate.perceptual import backbone
from reweave.editing.evaluate.table import entry
from reweave.editing.host.embedding import embeddings
from torch import Tensor

from demo.edit_clips import CLIPS, DEFAULT

KEPT = Path(__file__).resolve().parent.parent / ".cache" / "quality_cells"
DEMO_STEPS, DEMO_CFG, DEMO_SIZE = 12, 2.0, (128, 128)
SHOWN, SIDE = 5, 96
CLOCK = "s" if CHOSEN.gpu else "CPU s"  # on a shared processor, the clock on the wall says little
clock = time.monotonic if CHOSEN.gpu else time.process_time
TRIAL = (
    "This was a trial run with fewer clips or steps than the default: it shows that the benchmark "
    "works, and nothing about the methods."
)


@dataclass(frozen=True)
class Setup:
    """What all cells of a run share."""

    checkpoint: Path
    content: str
    """Of the checkpoint, 12 hex digits."""
    steps: int
    cfg: float
    size: tuple[int, int]
    beyond: str = ""
    """What else the numbers depend on, as the end of the key."""

    @property
    def key(self) -> str:
        height, width = self.size
        shared = f"{self.content}_{self.steps}_{self.cfg:g}_{height}x{width}_{EVALUATION}"
        return shared + self.beyond

    @property
    def default(self) -> bool:
        """Whether these are the demo checkpoint's own settings."""
        own = self.checkpoint.name, self.steps, self.cfg, self.size
        return own == (DEMO.name, DEMO_STEPS, DEMO_CFG, DEMO_SIZE)


def setup() -> Setup:
    """From the command line. Raises: ValueError for what is not there, or for another size."""
    path = Path(CHOSEN.checkpoint)
    if not path.is_file():
        path = HOST / "models" / "checkpoints" / CHOSEN.checkpoint
    if not path.is_file():
        raise ValueError(
            f"no checkpoint {CHOSEN.checkpoint} in {path.parent}: give a name there, or a path "
            "(the demo's own is built by `python dev.py setup`)"
        )
    demo = path.name == DEMO.name
    height, width = CHOSEN.size or (DEMO_SIZE if demo else (512, 512))
    if CHOSEN.clips is None and height != width:
        raise ValueError(
            f"rendered clips are square, --size asks for {width}x{height}: give the same number "
            "twice, or real clips with --clips"
        )
    if min(height, width) < 8 or height % 8 or width % 8:
        raise ValueError(f"--size {height} {width}: give multiples of 8, as the VAE needs them")
    cfg = CHOSEN.cfg if CHOSEN.cfg is not None else DEMO_CFG if demo else 7.5
    steps = CHOSEN.steps or (DEMO_STEPS if demo else 50)
    return Setup(path, content_of(path), steps, cfg, (height, width), beyond())


def judge_files() -> dict[str, Path]:
    """What was asked for with --clip and --clip-vision. Raises: ValueError for missing files."""
    asked = {"clip": "text_encoders", "clip_vision": "clip_vision"}
    found = {
        option: HOST / "models" / folder / getattr(CHOSEN, option)
        for option, folder in asked.items()
        if getattr(CHOSEN, option)
    }
    for option, path in found.items():
        if not path.is_file():
            raise ValueError(f"--{option.replace('_', '-')}: no {path.name} in {path.parent}")
    return found


def beyond() -> str:
    """The device and the judges that a cell depends on; empty on the processor without judges."""
    parts = ["gpu"] if CHOSEN.gpu else []
    parts += [f"{option}-{content_of(path)}" for option, path in judge_files().items()]
    parts += ["lpips"] if backbone().is_file() else []
    return "".join(f"_{part}" for part in parts)


class Models:
    """Loaded when the first cell that is missing needs them."""

    def __init__(self, chosen: Setup) -> None:
        self.chosen = chosen
        self._parts: tuple[Any, Any, Any] | None = None

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """(MODEL, CLIP, VAE) of the checkpoint."""
        if self._parts is None:
            import comfy.sd

            path = str(self.chosen.checkpoint)
            self._parts = comfy.sd.load_checkpoint_guess_config(
                path, output_vae=True, output_clip=True
            )[:3]
        return self._parts

    def job(self, case: Case, footage: Footage) -> Job:
        """Inverts the clip."""
        model, clip, vae = self.parts
        positive, negative = (encoded_text(clip, text) for text in (case.target, case.source))
        inversion, decoded = inverted(model, vae, negative, footage.frames, self.chosen.steps)
        return Job(
            model, vae, inversion, positive, negative, self.chosen.cfg, footage.frames,
            decoded, footage.mask, case.layers,
        )  # fmt: skip


def judges() -> tuple[Any, Any]:
    """(CLIP, CLIP_VISION) that were asked for, or None: without them their scores are named."""
    import comfy.clip_vision
    import comfy.sd

    files, clip, vision = judge_files(), None, None
    if "clip" in files:
        path = str(files["clip"])
        clip = comfy.sd.load_clip([path], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
    if "clip_vision" in files:
        vision = comfy.clip_vision.load(str(files["clip_vision"]))
    return clip, vision


def judged(case: Case, footage: Footage, job: Job, edited: Tensor, judge: tuple) -> dict:
    """Every measure of one cell: {name: {value, unit, better, missing, ...}}."""
    source, shown = (clip.movedim(1, -1).cpu() for clip in (footage.frames, edited))
    truth = footage.truth
    known: dict[str, Any] = {}
    if truth is not None:
        known = {"flow": truth.flow, "uv": truth.uv, "on_surface": (truth.mask > 0.99)[:, 0]}
    mask = None if footage.mask is None else footage.mask[:, 0]
    seen = embeddings(*judge, case.target, source, shown)
    report = measure(Evidence(source, shown, mask=mask, **known, **seen))
    found = {metric.name: entry(metric) for metric in report.metrics}
    if truth is not None and case.rendered is not None:
        scores = truth_scores(edited.cpu(), job.decoded.cpu(), case.rendered, truth)
        for name, reason in UNDEFINED.items():
            value = scores.get(name)
            found[name] = {"value": value, "missing": "" if name in scores else reason}
    return found


def run_case(case: Case, models: Models, methods: list[str], folder: Path, judge: tuple) -> None:
    """Fill the cells of one clip that are not there yet."""
    wanted = lacking(methods, folder)
    if not wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    reasons = {name: METHODS[name].needs(models.parts[0]) for name in wanted}
    for name in (name for name in wanted if reasons[name]):
        _keep(folder / f"{name}.json", {"not run": reasons[name]})
    wanted = [name for name in wanted if not reasons[name]]
    if not wanted:
        return
    footage = load(case, models.chosen.size)
    save_sheet([thumbnails(footage.frames, SHOWN, SIDE)], folder / "source.png")
    job = models.job(case, footage)
    for name in wanted:
        started = clock()
        edited = METHODS[name].run(job)
        spent = clock() - started if name != SOURCE else None
        save_sheet([thumbnails(edited.cpu(), SHOWN, SIDE)], folder / f"{name}.png")
        scores = judged(case, footage, job, edited, judge)
        cell = {"scores": scores, "spent": spent, "clock": CLOCK, "frames": len(edited)}
        _keep(folder / f"{name}.json", {**cell, "case": described(case), "commit": commit()})
        print(f"    {name}: {spent or 0:.0f} {CLOCK}", flush=True)


def lacking(methods: list[str], folder: Path) -> list[str]:
    """The methods without a kept result; what could not be run is tried again."""

    def kept(file: Path) -> bool:
        return file.is_file() and "not run" not in json.loads(file.read_text(encoding="utf-8"))

    return [name for name in methods if CHOSEN.fresh or not kept(folder / f"{name}.json")]


def _keep(path: Path, cell: dict) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(cell), encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Measure and print; write the result file, the pages' tables and the contact sheet."""
    unknown = set(CHOSEN.method or ()) - set(METHODS)
    if unknown:
        raise ValueError(f"no method {', '.join(unknown)}; there are: {', '.join(METHODS)}")
    chosen, methods = setup(), [m for m in METHODS if m in (CHOSEN.method or METHODS)]
    real = CHOSEN.clips is not None
    cases = (
        real_cases(CHOSEN.clips, CHOSEN.limit)
        if real
        else rendered_cases(CHOSEN.full, CHOSEN.limit)
    )
    wrong = [f"{c.name}: {f}" for c in cases if c.rendered for f in faults(c.rendered, 128)]
    if wrong:
        raise ValueError("the ground truth is not to be trusted:\n" + "\n".join(wrong))
    models, judge = Models(chosen), judges()
    folders = {case.name: KEPT / chosen.key / case.key for case in cases}
    with torch.inference_mode():
        for number, case in enumerate(cases):
            print(f"{number + 1}/{len(cases)} {case.name}", flush=True)
            run_case(case, models, methods, folders[case.name], judge)
    cells = cells_of(folders, list(METHODS))
    methods = [name for name in METHODS if any(name in row for row in cells.values())]
    partial = bool(CHOSEN.method or CHOSEN.limit or real) or not chosen.default
    if partial and not CHOSEN.write:
        print(f"\n{table(rows_of(cells, methods))}\n")
        print("not a whole default run: no page and no result file was written (--write does)")
        return
    write_all(cases, methods, folders, chosen, "quality_real" if real else "quality")


def write_all(
    cases: list[Case], methods: list[str], folders: dict[str, Path], chosen: Setup, name: str
) -> None:
    """The tables from the cells."""
    cells = cells_of(folders, methods)
    write_result(name, rows_of(cells, methods), notes_of(cases, cells, chosen))
    result, sheet = (RESULTS / f"{name}{suffix}" for suffix in (".json", ".jpg"))
    save_sheet(_sheet(folders, methods), sheet)
    fill_page(result, cells, methods, {case.name: case.kind for case in cases})
    print(f"wrote {sheet.name}: per clip the source, then {', '.join(methods)}")


def notes_of(cases: list[Case], cells: Cells, chosen: Setup) -> list[str]:
    """What the numbers stand for."""
    height, width = chosen.size
    which = "real clips" if CHOSEN.clips else f"of the {len(CLIPS)} rendered clips"
    notes = [
        f"{len(cases)} {which}, {width}x{height} pixels, {chosen.steps} steps, cfg {chosen.cfg:g}, "
        f"inverted with {EVALUATION!r}, checkpoint {chosen.checkpoint.name} "
        f"({chosen.content}); negative prompt = the source's caption; means over the clips where "
        "a measure is defined.",
    ]
    scored = [cell for row in cells.values() for cell in row.values() if "scores" in cell]
    other = sorted({cell.get("commit", "not recorded") for cell in scored} - {commit()})
    if other:
        notes.append(f"Results that were kept from another commit ({', '.join(other)}) are used.")
    if chosen.steps < DEMO_STEPS or len(cases) < (1 if CHOSEN.clips else DEFAULT):
        notes.append(TRIAL)
    return notes


def _sheet(folders: dict[str, Path], methods: list[str]) -> list[Tensor]:
    """Rows of the contact sheet: per clip its source, then every method that ran."""
    from torchvision.io import ImageReadMode, read_image

    rows = []
    for folder in folders.values():
        for name in ("source", *(m for m in methods if m != SOURCE)):
            if (folder / f"{name}.png").is_file():
                picture = read_image(str(folder / f"{name}.png"), ImageReadMode.RGB)
                rows.append(picture[None].float() / 255)
    return rows


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"quality: {error}")
