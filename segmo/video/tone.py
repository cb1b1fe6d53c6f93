"""HDR pictures in standard range, so that a model sees what a person sees on a usual screen.

PQ and HLG to light: ITU-R BT.2100-2. Light above the screen's white is drawn in by the curve of ITU-R BT.2390-8 (5.4.1)
on the brightest of the three colours, so that hues stay; the colours go from BT.2020 to BT.709 (ITU-R BT.2087). White
of a usual screen is 203 cd/m² (ITU-R BT.2408), the brightest light 1000, for which nearly all films are made.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18  # ITU-T H.273, table 3
TRANSFERS = {PQ: "PQ", HLG: "HLG"}
WHITE, PEAK = 203.0, 1000.0  # cd/m²
_STEPS = 4096
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_LUMA = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)  # of BT.2020
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def standard_range(pixels: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """Brings a picture to the range of a usual screen.

    Args:
        pixels: (height, width, 3), RGB in BT.2020 with 16 bits.
        transfer: :data:`PQ` or :data:`HLG`.

    Returns:
        (height, width, 3) RGB.
    """
    light = _light(transfer)[pixels >> 4]  # cd/m², of the scene for HLG
    if transfer == HLG:  # the system's gamma is 1.2 for a screen of 1000 cd/m²
        luma = np.maximum(light @ _LUMA, 1e-6)[..., None]
        light = PEAK * light * luma**0.2
    brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    drawn_in = np.asarray(np.interp(_to_pq(brightest), *_curve()), dtype=np.float32)
    shown = np.clip((light * (_from_pq(drawn_in) / brightest)) @ _TO_709.T / WHITE, 0.0, 1.0)
    found: NDArray[np.uint8] = np.rint(255 * shown ** (1 / 2.4)).astype(np.uint8)
    return found


@cache
def _light(transfer: int) -> NDArray[np.float32]:
    """Light of each of the signal's values."""
    signal = np.linspace(0.0, 1.0, _STEPS)
    if transfer == PQ:
        return np.asarray(_from_pq(signal), dtype=np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return np.asarray(light, dtype=np.float32)


@cache
def _curve() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """BT.2390's curve from the signal of a bright screen to that of a usual one, both in PQ."""
    top, white = float(_to_pq(PEAK)), float(_to_pq(WHITE))
    signal = np.linspace(0.0, 1.0, _STEPS)
    given, most = np.clip(signal / top, 0.0, 1.0), white / top
    knee = 1.5 * most - 0.5
    part = np.clip((given - knee) / (1 - knee), 0.0, 1.0)
    bent = (2 * part**3 - 3 * part**2 + 1) * knee
    bent += (part**3 - 2 * part**2 + part) * (1 - knee) + (3 * part**2 - 2 * part**3) * most
    return signal, np.where(given < knee, given, bent) * top


def _to_pq(light: Any) -> Any:
    power = (np.asarray(light) / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _from_pq(signal: Any) -> Any:
    power = np.asarray(signal) ** (1 / _M2)
    return 10_000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)
