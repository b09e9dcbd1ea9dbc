"""Measuring an edit: optical flow, and what is computed along it."""
