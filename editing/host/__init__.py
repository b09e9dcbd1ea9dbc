"""The only place outside nodes/ that knows ComfyUI."""

from .atlas_files import KIND as ATLAS_FILES
from .atlas_files import atlas_stamp, list_atlases, load_atlas
from .atlas_fitting import fit_clip
from .attach import attach, edits_of
from .feature_cache import field_bytes, token_bytes
from .files import file_stamp, load_payload, save_payload
from .guiding import gradient_bytes, model_latents, warped
from .inverting import InversionRequest, invert_clip
from .model import base_hash, describe, fingerprint, latent_format, sites_of, supported_sites
from .notices import say, warn
from .paths import cache_folder, files_folder, input_folder, list_files, resolve_file
from .starting import start_of
from .temporal_files import FILES as TEMPORAL_FILES
from .temporal_files import list_temporal, load_temporal, prompt_text, temporal_stamp
from .temporal_training import TrainingRequest, train_temporal
from .temporal_unet import TemporalEdit, apply_temporal
from .walking import play_back, walk_source
from .watching import check_inversion, extract, field_of

__all__ = [
    "ATLAS_FILES",
    "TEMPORAL_FILES",
    "InversionRequest",
    "TemporalEdit",
    "TrainingRequest",
    "apply_temporal",
    "atlas_stamp",
    "attach",
    "base_hash",
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
    "fit_clip",
    "gradient_bytes",
    "input_folder",
    "invert_clip",
    "latent_format",
    "list_atlases",
    "list_files",
    "list_temporal",
    "load_atlas",
    "load_payload",
    "load_temporal",
    "model_latents",
    "play_back",
    "prompt_text",
    "resolve_file",
    "save_payload",
    "say",
    "sites_of",
    "start_of",
    "supported_sites",
    "temporal_stamp",
    "token_bytes",
    "train_temporal",
    "walk_source",
    "warn",
    "warped",
]
