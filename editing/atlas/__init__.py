"""Layered atlases: fit, load, map, edit and render (StableVideo, Chai et al. 2023)."""
