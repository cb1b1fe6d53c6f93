"""When each frame of a file is shown and where decoding can start.

From its packets alone where their time stamps are sound: nothing but the first frame is decoded. Where stamps are
missing, jump or run backwards, the whole file is decoded once, because only the decoder knows the order of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np

from segmo.video.clock import HOLD, JUMP, Stamped, forward
from segmo.video.encryption import has_encrypted_track
from segmo.video.given import Given, as_source
from segmo.video.packets import Damage, Packets, decoded_frames, read_packets
from segmo.video.pixels import UNSAID, shown_size
from segmo.video.source import File, frame_rate, open_source, stage_error, video_streams
from segmo.video.times import ROUNDING, SLACK, Index, dense_rate

_REORDERED = 16  # frames by which the order of packets may differ from that of time, in any codec


def build_index(source: Given, fps: float = 1.0) -> Index:
    """Reads all packets of a file.

    Args:
        source: what :func:`segmo.video.read` takes.
        fps: pictures without times of their own are shown at so many a second.

    Raises:
        VideoError: it is not a video, or has no frame that can be decoded.
    """
    video = as_source(source)
    return _of_file(video) if isinstance(video, File) else video.index(fps)


def _of_file(source: File) -> Index:
    with open_source(source) as container:
        streams = video_streams(container, source)
        packets = read_packets(container, streams)
        number = _chosen(streams, packets, source)
        stream = streams[[each.index for each in streams].index(number)]
        rate, tick = frame_rate(stream), float(stream.time_base or 0)
        base = float(stream.base_rate or 0) or rate
        limit = JUMP if _breaks(container) else HOLD
        end = _stated_end(container, stream)
        others = sum(bool(found.count) for found in packets.values())
    notes = (f"the file has {others} video streams; one of them is read",) if others > 1 else ()
    found = packets[number]
    first, sizes = _first(source, number)
    slack = max(SLACK, min(ROUNDING, tick / 2))
    common: dict[str, Any] = {"rate": rate, "slack": slack, "stream": number, **sizes}
    if first is None or _odd(found, tick):
        return _surveyed(source, number, max(rate, base), limit, common, notes)
    stamps = np.sort(np.asarray(found.stamps, dtype=np.float64)) * tick
    times = stamps[stamps >= first - SLACK] - first
    keys = np.unique(np.asarray(found.keys, dtype=np.float64) * tick - first)
    starts = keys[keys >= -SLACK]
    lasts = found.lasts * tick if found.lasts > 0 else 1 / rate
    if found.reordered and end is not None:  # a packet lasts until the next is decoded, not until the next is shown
        lasts = end * tick - float(stamps[-1])
    last = float(times[-1])
    common["end"] = last + (lasts if 0 < lasts <= HOLD else 1 / rate)
    return Index(
        first,
        times,
        starts if len(starts) else np.zeros(1),
        dense=dense_rate(times, max(rate, base)),
        notes=notes,
        **common,
    )


def _stated_end(container: Any, stream: Any) -> int | None:
    """When an MP4 file says that the track ends, in ticks of the stream."""
    if "mp4" not in container.format.name or not stream.duration:
        return None
    return int((stream.start_time or 0) + stream.duration)


def _chosen(streams: Sequence[Any], packets: dict[int, Packets], source: File) -> int:
    """The stream that a player shows: not empty, and of several one marked as the default, or one that is no still.

    Raises:
        VideoError: no stream has a frame, or all are encrypted.
    """
    default = av.stream.Disposition.default

    def still(stream: Any) -> bool:
        return packets[stream.index].count == 1

    there = [each for each in streams if packets[each.index].count]
    if not there:
        raise stage_error(source, "has a video stream without a single frame")
    clear = [] if has_encrypted_track(source) else [each for each in there if not packets[each.index].encrypted]
    if not clear:
        raise stage_error(source, "is encrypted, and cannot be read without its key", advice="decrypt it first")
    return int(min(clear, key=lambda each: (not each.disposition & default, still(each), each.index)).index)


def _breaks(container: Any) -> bool:
    """Whether the format's clock may jump without a reason (AVFMT_TS_DISCONT), as in recordings of a broadcast."""
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def _first(source: File, number: int) -> tuple[float | None, dict[str, Any]]:
    """Time stamp of the first frame that can be decoded, in seconds, and its two sizes.

    Raises:
        VideoError: no frame can be decoded.
    """
    with open_source(source) as container:
        stream = video_streams(container, source, number)[0]
        told = int(stream.codec_context.color_trc)  # by the container; a decoder writes over it
        for frame in decoded_frames(container, stream, Damage()):
            stamp = None if frame.pts is None else float(frame.pts * frame.time_base)
            size = shown_size(frame, stream.sample_aspect_ratio)
            transfer = int(stream.codec_context.color_trc) if told == UNSAID else told
            return stamp, {"size": size, "stored": (frame.width, frame.height), "transfer": transfer}
    raise stage_error(source, "has no frame that can be decoded")


def _odd(found: Packets, tick: float) -> bool:
    """Whether the packets' stamps do not tell by themselves when frames are shown."""
    if found.untimed or found.cut or tick <= 0:
        return True
    stamps = np.asarray(found.stamps)
    order = np.argsort(stamps, kind="stable")
    moved = np.abs(order - np.arange(len(order))).max()
    steps = np.diff(stamps[order])
    return bool(moved > _REORDERED or (steps <= 0).any() or (steps * tick > JUMP).any() or found.backwards)


def _surveyed(
    source: File, number: int, dense: float, limit: float, common: dict[str, Any], notes: tuple[str, ...]
) -> Index:
    """Decodes all frames for their stamps."""
    frames, keys = [], []
    with open_source(source) as container:
        stream = video_streams(container, source, number)[0]
        for frame in decoded_frames(container, stream, Damage()):
            tick = float(frame.time_base or 0)
            stamp = frame.pts if frame.pts is not None else frame.dts
            frames.append(Stamped(stamp * tick if stamp is not None and tick else None, (frame.duration or 0) * tick))
            keys.append(bool(frame.key_frame))
    stamps = np.array([frame.stamp for frame in frames if frame.stamp is not None])
    steps = np.diff(stamps)
    usual = steps[(steps > 0) & (steps <= JUMP)]
    step = float(np.median(usual)) if len(usual) else 1 / common["rate"]
    times, mended = forward(frames, step, limit)
    lasts = frames[-1].lasts
    end = times[-1] + (lasts if 0 < lasts <= limit else step)
    whole = not mended and len(stamps) == len(frames)
    if mended and len(stamps):
        places = f"{mended} place{'s' if mended > 1 else ''}"
        notes += (f"its time stamps jump or are missing in {places}; the clock was made to go forward",)
    starts = [time for time, key in zip(times, keys, strict=True) if key] if whole else [0.0]
    return Index(
        float(stamps[0]) if len(stamps) else 0.0,
        np.asarray(times),
        np.asarray(starts or [0.0]),
        dense=dense_rate(np.asarray(times), dense),
        end=end,
        seeks=whole,
        counted=not whole,
        notes=notes,
        **common,
    )
