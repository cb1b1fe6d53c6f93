"""A video file played over and over, to any length, without decoding or encoding: its packets are copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

from segmo.errors import SegMoError


def repeat_file(source: Path, seconds: float, out: Path) -> Path:
    """Writes an mp4 in which the whole of ``source`` is played again and again for at least ``seconds``.

    Args:
        source: a file whose video starts with a keyframe and can be put into an mp4.
        seconds: of the written file, at least.
        out: the file to write.

    Raises:
        SegMoError: ``source`` has no video.
    """
    with av.open(str(source)) as given:
        if not given.streams.video:
            raise SegMoError(f"{source} has no video to repeat")
        stream: Any = given.streams.video[0]
        packets: list[Any] = [packet for packet in given.demux(stream) if packet.size]
        step = packets[0].duration or 1
        first = min(packet.pts for packet in packets)
        length = max(packet.pts for packet in packets) + step - first
        rounds = max(1, -int(-seconds // float(length * stream.time_base)))
        unfinished = out.with_suffix(".part")
        with av.open(str(unfinished), "w", format="mp4") as written:
            copy = written.add_stream_from_template(stream)
            places = [(packet.pts, packet.dts) for packet in packets]
            for number in range(rounds):
                for packet, (pts, dts) in zip(packets, places, strict=True):
                    packet.pts, packet.dts = pts + number * length, dts + number * length
                    packet.time_base, packet.stream = stream.time_base, copy
                    written.mux(packet)
    unfinished.replace(out)
    return out
