"""The only place outside nodes/ that knows ComfyUI."""

from .attach import attach, edits_of
from .feature_cache import field_bytes, token_bytes
from .files import file_stamp, load_payload, save_payload
from .guiding import gradient_bytes, model_latents, warped
from .inverting import InversionRequest, invert_clip
from .model import describe, fingerprint, latent_format, sites_of, supported_sites
from .notices import say, warn
from .paths import cache_folder, files_folder, list_files, resolve_file
from .starting import start_of
from .walking import play_back, walk_source
from .watching import check_inversion, extract, field_of

__all__ = [
    "InversionRequest",
    "attach",
    "cache_folder",
    "check_inversion",
    "describe",
    "edits_of",
    "extract",
    "field_bytes",
    "field_of",
    "file_stamp",
    "files_folder",
    "fingerprint",
    "gradient_bytes",
    "invert_clip",
    "latent_format",
    "list_files",
    "load_payload",
    "model_latents",
    "play_back",
    "resolve_file",
    "save_payload",
    "say",
    "sites_of",
    "start_of",
    "supported_sites",
    "token_bytes",
    "walk_source",
    "warn",
    "warped",
]
