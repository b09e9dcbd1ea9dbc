"""benchmarks/scored_tables.py: averages, goals, and columns that were not run on all clips."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

COLUMNS = ["plain", "half", "best"]


def clip(best: dict[str, float], half: bool) -> dict[str, dict[str, float]]:
    """Scores of one clip: a plain edit with a variation of 20, the best column's as given."""
    plain = {"background change": 4.0, "colour variation": 20.0, "silhouette IoU": 0.5}
    found = {"source clip": {"colour variation": 1.0}, "plain": plain, "best": best}
    return found | ({"half": plain} if half else {})


def rows(parts: SimpleNamespace, *clips: dict) -> dict[str, dict]:
    results = {str(number): found for number, found in enumerate(clips)}
    return {entry["metric"]: entry for entry in parts.scored_tables.table(results, COLUMNS)}


@pytest.mark.parametrize(
    ("measure", "reaching", "missing"),
    [
        ("target colour coverage", 0.97, 0.9699),
        ("background change", 3.9, 4.0),  # below 5, but not below the plain edit's
        ("silhouette IoU", 0.85, 0.8499),
        ("colour variation", 3.0, 3.01),  # 0.15 of the plain edit's
    ],
)
def test_goals_are_those_of_the_last_column(parts, measure, reaching, missing):
    for value, reached in ((reaching, True), (missing, False)):
        found = rows(parts, clip({measure: value}, True))
        assert found[f"best: {measure}"]["reached"] is reached
        assert all(entry["goal"] == "" for name, entry in found.items() if "best" not in name)


def test_the_sources_own_variation_is_allowed(parts):
    scores = clip({"colour variation": 2.4}, True)
    scores["plain"]["colour variation"], scores["source clip"]["colour variation"] = 8.0, 2.0
    assert rows(parts, scores)["best: colour variation"]["goal"] == "<= 2.40"


def test_partial_columns_are_compared_on_the_same_clips(parts):
    found = rows(parts, clip({"silhouette IoU": 0.9}, True), clip({"silhouette IoU": 0.7}, False))
    assert found["best: silhouette IoU"]["value"] == 0.8
    assert not any(name.startswith("half") for name in found)
    prefix = "1 clips with all columns, "
    assert found[f"{prefix}best: silhouette IoU"]["value"] == 0.9
    assert found[f"{prefix}half: silhouette IoU"]["value"] == 0.5
    assert found[f"{prefix}best: silhouette IoU"]["goal"] == ""


def test_columns_without_a_common_clip_say_how_many_they_had(parts):
    found = rows(parts, clip({}, False), {"half": {"silhouette IoU": 0.6}})
    assert found["half: silhouette IoU (1 of these clips)"]["value"] == 0.6
