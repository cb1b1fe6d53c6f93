"""Measured devices, one small JSON file each, in the user's cache folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import platformdirs
import torch

from segmo.checked import is_number
from segmo.errors import PlanError
from segmo.runtime.cost.device import Device, device_named
from segmo.runtime.cost.gain import Fusion
from segmo.runtime.cost.measure import device_title


def devices_folder() -> Path:
    """Where measured devices are kept: below ``$SEGMO_CACHE``, or ``segmo`` in the user's cache folder."""
    folder = os.environ.get("SEGMO_CACHE")
    return (Path(folder) if folder else platformdirs.user_cache_path("segmo")) / "devices"


def _file(device: torch.device, dtype: torch.dtype, folder: Path) -> Path:
    name = f"{device_title(device)} {str(dtype).removeprefix('torch.')}"
    return folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")


def save_device(measured: Device, device: torch.device, dtype: torch.dtype, folder: Path | None = None) -> Path:
    """Stores what was measured; returns the file."""
    file = _file(device, dtype, folder or devices_folder())
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(measured), indent=1))
    part.replace(file)
    return file


def load_device(device: torch.device, dtype: torch.dtype, folder: Path | None = None) -> Device | None:
    """What :func:`save_device` stored for this device, dtype and number of threads, or None.

    Raises:
        PlanError: the file cannot be read, or holds something else.
    """
    file = _file(device, dtype, folder or devices_folder())
    try:
        text = file.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"what was measured of this device cannot be read from {file}: {error}") from error
    try:
        stored = json.loads(text)
        found = Device(**{**stored, "fusion": Fusion.parse(stored.get("fusion"))})
        _check_figures(found)
        return found
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"{file} does not hold a measured device ({error}); run `segmo calibrate` again") from error


def _check_figures(part: Any) -> None:
    """Whether numbers are numbers above 0, or at least 0 where that is a cost, and texts are texts; in its parts too.

    Raises:
        ValueError: one is not.
    """
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            _check_figures(value)
        if field.type == "str" and not isinstance(value, str):
            raise ValueError(f"{field.name} is {value!r}, no text")
        if field.type in ("int", "float") and not (
            is_number(value) and (value > 0 or (value == 0 and field.name.endswith(("seconds", "keys"))))
        ):
            raise ValueError(f"{field.name} is {value!r}")


def planning_device(name: str, device: torch.device, dtype: torch.dtype, folder: Path | None = None) -> Device:
    """The device to plan with: ``"calibrated"``, ``"auto"`` (calibrated, else a default), or a known name.

    Raises:
        PlanError: ``"calibrated"`` without a calibration, or an unknown name.
    """
    if name not in ("auto", "calibrated"):
        return device_named(name)
    found = load_device(device, dtype, folder)
    if found is not None:
        return found
    if name == "calibrated":
        raise PlanError(f"{device_title(device)} has not been measured with {dtype}; run `segmo calibrate`")
    return device_named("cpu" if device.type == "cpu" else _closest(device))


def _closest(device: torch.device) -> str:
    title = torch.cuda.get_device_name(device).lower()
    return next((name for name in ("a100", "h100", "b200", "mi300x") if name in title), "h100")
