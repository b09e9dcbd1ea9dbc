"""Where the nodes of a template lie: groups from left to right, one per stage of an edit.

Works on ComfyUI's UI format (a dict with nodes, links, groups); sizes are those the page gave.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Node = dict[str, Any]
TITLE_BAR, GAP, MARGIN, HEADING = 30, 40, 20, 50
NOTE_WIDTH = 380
# Title, colour, and what belongs there; a node never lies left of one that it gets something from.
STAGES: tuple[tuple[str, str, frozenset[str]], ...] = (
    (
        "1  Model and clip",
        "#3f5159",
        frozenset(
            "CheckpointLoaderSimple LoadVideo GetVideoComponents ImageFromBatch ImageScale "
            "ImageToMask ControlNetLoader Canny Reweave_LoadAtlas".split()
        ),
    ),
    ("2  Words", "#335533", frozenset(["CLIPTextEncode"])),
    (
        "3  What the source gives",
        "#3f789e",
        frozenset(
            "VAEEncode Reweave_InvertVideo Reweave_FitAtlas Reweave_ExtractTokens Reweave_NNField "
            "Reweave_CheckInversion Reweave_TrainTemporalUNet".split()
        ),
    ),
    ("4  The edit", "#a1309b", frozenset()),
    (
        "5  Result",
        "#b58b2a",
        frozenset(
            "VAEDecode CreateVideo SaveVideo SaveImage PreviewImage PreviewAny "
            "Reweave_RestoreBackground Reweave_RenderAtlas Reweave_ConsistencyReport "
            "Reweave_CompareVideos Reweave_SaveInversion Reweave_SaveAtlas "
            "Reweave_SaveTemporalUNet Reweave_PreviewTokens Reweave_PreviewNNField".split()
        ),
    ),
)
EDIT = 3
SHOWS_RESULTS = {
    "PreviewImage": (300, 300),
    "SaveImage": (300, 340),
    "SaveVideo": (300, 360),
    "PreviewAny": (300, 200),
    "Reweave_CheckInversion": (300, 260),
    "Reweave_ConsistencyReport": (400, 420),
    "Reweave_PreviewTokens": (300, 300),
    "Reweave_PreviewNNField": (330, 320),
}
"""Least width and height."""
WITHOUT_CHECKPOINT = ("paint_on_atlas", "load_published_atlas")


def arrange(workflow: dict[str, Any], note: str) -> dict[str, Any]:
    """Lay out `workflow`, with the groups of STAGES and `note` (Markdown) on its left.

    Returns a new dict; node ids, links and widget values stay as they are.
    """
    nodes = [
        {**node, "pos": [0, 0], "size": _size(node)}
        for node in workflow["nodes"]
        if node["type"] != "MarkdownNote"
    ]
    parents = _parents(nodes, workflow["links"])
    stage = _stages(nodes, parents)
    most = max(node["size"][1] for node in nodes) + TITLE_BAR
    limit = max(most, 760.0)
    while True:
        groups, right = _place(nodes, parents, stage, limit)
        if right <= 2.6 * limit:
            break
        limit += 60
    tall = max(group["bounding"][3] for group in groups)
    card = _note(max(node["id"] for node in nodes) + 1, note, tall - HEADING)
    return {**workflow, "nodes": [*nodes, card], "groups": groups, "last_node_id": card["id"]}


def note_of(name: str, guide: str) -> str:
    """The section of a template in docs/templates.md, and what to set for another checkpoint.

    Raises: KeyError where it has none.
    """
    parts = guide.split("\n## ")[1:]
    sections = {
        title.strip(): text.strip() for title, _, text in (p.partition("\n") for p in parts)
    }
    own = sections[name]
    general = "With your own checkpoint and clip"
    return own if name in WITHOUT_CHECKPOINT else f"{own}\n\n## {general}\n\n{sections[general]}"


def overlaps(workflow: dict[str, Any]) -> list[tuple[int, int]]:
    """Ids of nodes that cover each other."""
    boxes = [(node["id"], *_box(node)) for node in workflow["nodes"]]
    return [
        (a[0], b[0])
        for i, a in enumerate(boxes)
        for b in boxes[i + 1 :]
        if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]
    ]


def _size(node: Node) -> list[float]:
    """What the page measured; where a result appears in the node, room for it."""
    least = SHOWS_RESULTS.get(node["type"], (0, 0))
    return [max(have, want) for have, want in zip(node["size"], least, strict=True)]


def _box(node: Node) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_BAR, x + width, y + height


def _parents(nodes: list[Node], links: list[list[Any]]) -> dict[int, set[int]]:
    parents: dict[int, set[int]] = {node["id"]: set() for node in nodes}
    for _, source, _, target, *_ in links:
        parents[target].add(source)
    return parents


def _stages(nodes: list[Node], parents: dict[int, set[int]]) -> dict[int, int]:
    own = {
        node["id"]: next((i for i, s in enumerate(STAGES) if node["type"] in s[2]), EDIT)
        for node in nodes
    }
    # Pictures that go on into the edit (a texture that is encoded and drawn on) belong to it.
    children = {n: {c for c, from_ in parents.items() if n in from_} for n in own}

    def leads_to_edit(node: int) -> bool:
        return any(own[c] == EDIT or leads_to_edit(c) for c in children[node])

    stage: dict[int, int] = {}

    def of(node: int) -> int:
        if node not in stage:
            before = max((of(parent) for parent in parents[node]), default=0)
            early = EDIT if own[node] > EDIT and leads_to_edit(node) else own[node]
            stage[node] = max(before, early)
        return stage[node]

    for node in own:
        of(node)
    return stage


def _depths(members: Iterable[int], parents: dict[int, set[int]]) -> dict[int, int]:
    """Longest way inside one group."""
    inside, depth = set(members), {}

    def of(node: int) -> int:
        if node not in depth:
            depth[node] = 1 + max((of(p) for p in parents[node] if p in inside), default=-1)
        return depth[node]

    for node in inside:
        of(node)
    return depth


def _place(
    nodes: list[Node], parents: dict[int, set[int]], stage: dict[int, int], limit: float
) -> tuple[list[dict[str, Any]], float]:
    """Fill columns of at most `limit` pixels, top to bottom -> groups, right edge."""
    groups: list[dict[str, Any]] = []
    left = 0.0
    for number, (title, colour, _) in enumerate(STAGES):
        members = [node for node in nodes if stage[node["id"]] == number]
        if not members:
            continue
        depth = _depths((node["id"] for node in members), parents)
        members.sort(key=lambda node: depth[node["id"]])
        columns: list[list[Node]] = [[]]
        for node in members:
            if columns[-1] and _height([*columns[-1], node]) > limit:
                columns.append([])
            columns[-1].append(node)
        x, tall = left + MARGIN, 0.0
        for column in columns:
            y = float(HEADING + TITLE_BAR)
            for node in column:
                node["pos"] = [x, y]
                y += node["size"][1] + TITLE_BAR + GAP / 2
            x += max(node["size"][0] for node in column) + GAP
            tall = max(tall, _height(column))
        box = [left, 0, math.ceil(x - GAP + MARGIN - left), math.ceil(tall + HEADING + MARGIN)]
        groups.append(
            {"id": number + 1, "title": title, "bounding": box, "color": colour, "font_size": 24}
        )
        left = x - GAP + MARGIN + GAP
    return groups, left - GAP


def _height(column: list[Node]) -> float:
    return sum(node["size"][1] + TITLE_BAR for node in column) + GAP / 2 * (len(column) - 1)


def _note(number: int, text: str, height: float) -> Node:
    return {
        "id": number,
        "type": "MarkdownNote",
        "title": "Read me",
        "pos": [-NOTE_WIDTH - GAP, HEADING],
        "size": [NOTE_WIDTH, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
