"""Whether a file is encrypted: by its packets where PyAV tells, by its boxes where it does not (before 16)."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import av

from segmo.video.source import File

_TOLD = hasattr(av.Packet, "has_sidedata")


def is_encrypted(packet: Any) -> bool:
    """Whether a packet comes with a key's number; False where PyAV does not tell."""
    return _TOLD and bool(packet.has_sidedata("encryption_info"))


def has_encrypted_track(source: File, told: bool = _TOLD) -> bool:
    """Whether an MP4 or QuickTime file has an encrypted picture track (sample entry ``encv`` of ISO/IEC 14496-12).

    A decoder takes the encrypted bytes for a damaged film, and may give pictures of them.

    Args:
        told: packets tell, so nothing has to be read here.
    """
    if told:
        return False
    if isinstance(source.data, bytes):
        return _in_boxes(io.BytesIO(source.data))
    with source.data.open("rb") as file:
        return _in_boxes(file)


def _in_boxes(file: BinaryIO) -> bool:
    end = file.seek(0, io.SEEK_END)
    start = 0
    while start + 8 <= end:
        file.seek(start)
        size, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        head = 8
        if size == 1:
            size, head = int.from_bytes(file.read(8), "big"), 16
        elif size == 0:
            size = end - start
        if kind == b"moov":
            return b"encv" in file.read(size - head)
        if size < head or not kind.isalnum():  # another format
            return False
        start += size
    return False
