"""Measures of an edit: one file per family, each with its paper and formula."""

from .measure import measure
from .types import Evidence, Metric, Report

__all__ = ["Evidence", "Metric", "Report", "measure"]
