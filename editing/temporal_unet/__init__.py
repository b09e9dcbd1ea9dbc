"""TCVE (2023): a temporal UNet beside the image UNet, fused by spatial-temporal units."""
