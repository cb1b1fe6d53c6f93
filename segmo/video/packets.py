"""What a file's packets say, and the frames that come out of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av

from segmo.video.encryption import is_encrypted


@dataclass
class Damage:
    """What could not be decoded.

    Attributes:
        packets: packets that the decoder refused.
        broken_off: the file ended in the middle.
    """

    packets: int = 0
    broken_off: bool = field(default=False)

    def notes(self) -> tuple[str, ...]:
        """The same in words."""
        found = []
        if self.packets:
            found.append(f"{self.packets} damaged packet{'s' if self.packets > 1 else ''} could not be decoded")
        if self.broken_off:
            found.append("the file breaks off before its end")
        return tuple(found)


@dataclass
class Packets:
    """Of one stream; times are whole multiples of its time base.

    Attributes:
        stamps: when the packets' frames are shown, in the order of the file.
        keys: the same of those at which decoding can start.
        untimed: how many have no stamp.
        lasts: how long the packet with the last stamp lasts; 0 where the file says nothing.
        reordered: that packet is not the last one in the file.
        cut: packets in the middle are decoded and not shown, as an edit list asks.
        backwards: the time of decoding runs backwards.
        encrypted: some are.
    """

    stamps: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    untimed: int = 0
    lasts: int = 0
    reordered: bool = False
    cut: bool = False
    backwards: bool = False
    encrypted: bool = False
    _latest: int | None = None
    _decoded: int | None = None

    @property
    def count(self) -> int:
        """Packets that hold a frame which is shown."""
        return len(self.stamps) + self.untimed

    def add(self, packet: Any) -> None:
        """Takes the next packet of the stream."""
        self.encrypted = self.encrypted or is_encrypted(packet)
        if packet.is_discard:
            self.cut = self.cut or self.count > 0
            return
        if packet.dts is not None:
            self.backwards = self.backwards or (self._decoded is not None and packet.dts < self._decoded)
            self._decoded = packet.dts
        if packet.pts is None:
            self.untimed += 1
            return
        self.stamps.append(packet.pts)
        if packet.is_keyframe:
            self.keys.append(packet.pts)
        self.reordered = self._latest is not None and packet.pts < self._latest
        if not self.reordered:
            self._latest, self.lasts = packet.pts, packet.duration or 0


def read_packets(container: Any, streams: Sequence[Any]) -> dict[int, Packets]:
    """All packets of some streams, by the streams' numbers. A file that breaks off ends there."""
    found = {stream.index: Packets() for stream in streams}
    try:
        for packet in container.demux(*streams):
            if packet.size:
                found[packet.stream_index].add(packet)
    except av.error.FFmpegError:
        pass  # decoding meets the same place and notes it
    return found


def decoded_frames(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """All frames from where the file stands; what cannot be decoded is left out and noted."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            damage.broken_off = True
            yield from _rest(stream, damage)
            return
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            damage.packets += 1
            continue
        yield from decoded


def _rest(stream: Any, damage: Damage) -> list[Any]:
    """Frames that the decoder still holds back."""
    try:
        return list(stream.decode(None))
    except av.error.FFmpegError:
        damage.packets += 1
        return []
