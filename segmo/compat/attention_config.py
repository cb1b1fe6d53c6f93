"""Where transformers keeps a part's attention implementation, and whether that implementation runs here."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, utils

WHAT = "transformers' PretrainedConfig._attn_implementation_internal"
VERSIONS = "transformers 5.18 to 5.24"

_NAME = "_attn_implementation_internal"
_PACKAGES = {
    "flash_attention_2": "is_flash_attn_2_available",
    "flash_attention_3": "is_flash_attn_3_available",
    "flash_attention_4": "is_flash_attn_4_available",
}


def implementation(config: Any) -> str | None:
    """Name of the implementation of the part that has this config."""
    found: str | None = getattr(config, _NAME, None)
    return found


def put_implementation(config: Any, name: str | None) -> None:
    """Changes it for this part alone; the public property changes it in all configs inside of this one too."""
    setattr(config, _NAME, name)


def is_usable(name: str | None) -> bool:
    """Whether the packages that an implementation needs are installed."""
    check = getattr(utils, _PACKAGES.get(name or "", ""), None)
    return bool(check()) if check is not None else name not in _PACKAGES


def fits() -> str | None:
    """The public property has to read what is written here."""
    config = PretrainedConfig()
    put_implementation(config, "sdpa")
    return None if config._attn_implementation == "sdpa" else f"_attn_implementation does not read {_NAME}"
