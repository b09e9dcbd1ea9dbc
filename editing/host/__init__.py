"""The only place outside nodes/ that knows ComfyUI."""

from .attach import attach, edits_of
from .inverting import InversionRequest, invert_clip
from .model import describe, fingerprint, latent_format, sites_of
from .notices import say, warn
from .paths import cache_folder, files_folder, list_files, resolve_file
from .walking import play_back, walk_source

__all__ = [
    "InversionRequest",
    "attach",
    "cache_folder",
    "describe",
    "edits_of",
    "files_folder",
    "fingerprint",
    "invert_clip",
    "latent_format",
    "list_files",
    "play_back",
    "resolve_file",
    "say",
    "sites_of",
    "walk_source",
    "warn",
]
