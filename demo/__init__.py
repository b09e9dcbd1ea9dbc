"""The embedded default: scene renderer, bundled footage, training scripts and checkpoint
builder."""
