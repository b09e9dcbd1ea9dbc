"""Pure tensor compute: torch only, no ComfyUI; each plain definition beside its fast version."""
