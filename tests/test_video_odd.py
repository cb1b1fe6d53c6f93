"""Files that are sound and odd: each gives the frames and times that a player shows, or says why it does not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from video_files import flat, noise_shots, numbered, numbers, sequential, write_file

from segmo.video import Clip, fetch, read
from segmo.video.encryption import has_encrypted_track
from segmo.video.source import File, VideoError

KEY = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 31 + "1", "encryption_kid": "1" * 32}


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def later(seconds: float, which: Callable[[int], bool] = lambda number: True) -> Callable[[list[Any]], list[Any]]:
    """Shifts the stamps of packets, all or some."""

    def shift(packets: list[Any]) -> list[Any]:
        everything = all(map(which, range(len(packets))))
        for number, packet in enumerate(packets):
            if which(number):
                packet.pts += round(seconds / float(packet.time_base))
                packet.dts = packet.dts + round(seconds / float(packet.time_base)) if everything else packet.dts
        return packets

    return shift


def check_forward(clip: Clip) -> None:
    """No time is missing and every frame of the file is seen, each for its share."""
    assert [round(step, 6) for step in np.diff(clip.seconds)] == [round(1 / clip.fps, 6)] * (len(clip.seconds) - 1)


# The size changes.


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, shots = tmp_path_factory.mktemp("sizes"), [10] * 15
    small = write_file(folder / "small.ts", noise_shots(shots, 64, 48), fps=10, g="10")
    large = noise_shots(shots, 96, 64)[::-1]
    return joined(
        folder / "both.ts", small, write_file(folder / "large.ts", large, fps=10, g="10", packets=later(15.0))
    )


@pytest.mark.parametrize("size", [None, (32, 24)])
def test_a_size_that_changes_is_brought_to_one(two_sizes: Path, size: tuple[int, int] | None) -> None:
    one, two, four = (read(two_sizes, 2.0, size, workers=workers) for workers in (1, 2, 4))
    assert one.frames.shape == (60, *((48, 64) if size is None else (24, 32)), 3)
    for other in (two, four):
        np.testing.assert_array_equal(one.frames, other.frames)
        assert (one.cuts, one.notes, one.seconds.tolist()) == (other.cuts, other.notes, other.seconds.tolist())
    assert any("size of the picture changes" in note for note in one.notes)
    last = noise_shots([10] * 15, 96, 64)[0]
    scaled = np.asarray(Image.fromarray(last).resize((one.frames.shape[2], one.frames.shape[1]), Image.Resampling.BOX))
    assert np.abs(one.frames[-1].astype(int) - scaled).mean() < 12
    np.testing.assert_array_equal(fetch(two_sizes, [1.0, 20.0, 29.5], size), one.frames[[2, 40, 59]])


# The clock.


def test_two_recordings_in_one_file_follow_each_other(tmp_path: Path) -> None:
    one = write_file(tmp_path / "one.ts", numbered(150), preset="medium", bf="2")
    two = write_file(tmp_path / "two.ts", numbered(250)[150:], preset="medium", bf="2")
    clip = read(joined(tmp_path / "both.ts", one, two), 5.0)
    assert numbers(clip.frames) == list(range(0, 250, 5))
    assert clip.duration == pytest.approx(10.0)
    check_forward(clip)
    assert any("clock" in note for note in clip.notes)
    assert not clip.damaged
    np.testing.assert_array_equal(fetch(tmp_path / "both.ts", [1.0, 8.0]), clip.frames[[5, 40]])


@pytest.mark.parametrize("jump", [300.0, 40_000.0])
def test_a_broadcast_that_jumps_ahead_goes_on(tmp_path: Path, jump: float) -> None:
    one = write_file(tmp_path / "one.ts", numbered(100))
    two = write_file(tmp_path / "two.ts", numbered(200)[100:], packets=later(jump))
    clip = read(joined(tmp_path / "both.ts", one, two), 5.0)
    assert numbers(clip.frames) == list(range(0, 200, 5))
    assert clip.duration == pytest.approx(8.0)


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
@pytest.mark.parametrize(("first", "count"), [(1, 1), (40, 1), (40, 3), (97, 1)])
def test_a_stamp_that_is_far_off_is_put_between_its_neighbours(
    tmp_path: Path, suffix: str, first: int, count: int
) -> None:
    off = later(300.0, lambda number: first <= number < first + count)
    clip = read(write_file(tmp_path / f"off{suffix}", numbered(100), packets=off), 25.0)
    assert numbers(clip.frames) == list(range(100))
    assert clip.duration == pytest.approx(4.0, abs=0.05)
    assert any("clock" in note for note in clip.notes)


def test_a_break_for_an_advertisement_keeps_its_length(tmp_path: Path) -> None:
    """Another clock for three seconds, and then the film's own goes on where it was."""
    parts = [
        write_file(tmp_path / "film.ts", numbered(75)),
        write_file(tmp_path / "advertisement.ts", numbered(150)[75:], packets=later(5000.0)),
        write_file(tmp_path / "film again.ts", numbered(225)[150:], packets=later(3.0)),
    ]
    clip = read(joined(tmp_path / "all.ts", *parts), 5.0)
    assert numbers(clip.frames) == list(range(0, 225, 5))


def test_a_frame_that_is_shown_for_long_is_no_jump(tmp_path: Path) -> None:
    clip = read(write_file(tmp_path / "held.mkv", numbered(4), times=[0, 0.5, 30.5, 31.0]), 2.0)
    assert numbers(clip.frames) == [0, *[1] * 60, 2, 3]
    assert not clip.notes


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "2", "preset": "medium"}], ids=["in order", "reordered"])
def test_the_last_frame_lasts_as_long_as_the_file_says(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    def last(packets: list[Any]) -> list[Any]:
        for packet in packets:
            packet.duration = round((20.0 if packet is packets[-1] else 1 / 30) / float(packet.time_base))
        return packets

    times = [number / 30 for number in range(31)]
    path = write_file(tmp_path / f"last{suffix}", numbered(31), fps=30, times=times, packets=last, **options)
    clip = read(path, 2.0)
    if options["bf"] == "0" or suffix != ".mkv":  # in Matroska the last packet's time is that of a frame in between
        assert clip.duration == pytest.approx(21.0, abs=0.07)
        assert numbers(clip.frames) == [0, 15, *[30] * 40]


def test_a_moving_gif_has_its_times(tmp_path: Path) -> None:
    pictures = [Image.fromarray(picture) for picture in noise_shots([1, 1, 1], 40, 30)]
    path = tmp_path / "moving.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 500, 2000], loop=0)
    clip = read(path, 10.0)
    assert clip.duration == pytest.approx(2.6)
    differences = [np.abs(one.astype(int) - other).mean() > 3 for one, other in pairwise(clip.frames)]
    assert [number for number, cut in enumerate(differences, start=1) if cut] == [1, 6]
    assert np.abs(clip.frames[0].astype(int) - np.asarray(pictures[0])).mean() < 3


# The picture.


@pytest.mark.parametrize(
    ("aspect", "shown"), [((2, 1), (128, 48)), ((1, 2), (64, 96)), ((16, 11), (93, 48)), ((1, 1), (64, 48))]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pixels_that_are_not_square(
    tmp_path: Path, suffix: str, aspect: tuple[int, int], shown: tuple[int, int]
) -> None:
    from fractions import Fraction

    def mark(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)

    path = write_file(tmp_path / f"wide{suffix}", noise_shots([3]), mark=mark)
    clip = read(path, 25.0)
    assert clip.frames.shape[1:] == (shown[1], shown[0], 3)
    assert fetch(path, [0.0]).shape[1:3] == (shown[1], shown[0])
    limited = read(path, 25.0, max_pixels=1000).frames.shape
    assert limited[2] / limited[1] == pytest.approx(shown[0] / shown[1], rel=0.15)


def turned(path: Path, degrees: int, mirrored: bool, aspect: Any = None) -> Path:
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip(f"PyAV {av.__version__} cannot write a rotation")

    def mark(stream: Any) -> None:
        stream.set_display_rotation(degrees, mirrored, False)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect

    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:] = (250, 30, 30), (30, 30, 250)
    return write_file(path, [picture] * 5, mark=mark)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_and_mirrored_pictures_come_as_ffmpeg_turns_them(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = turned(tmp_path / "turned.mp4", degrees, mirrored)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        matrix = np.frombuffer(bytes(frame.side_data.get("DISPLAYMATRIX") or b""), np.int32).reshape(-1, 3)
    stored = frame.to_ndarray(format="rgb24")
    wanted = placed(stored, matrix[:2, :2] / 65536) if len(matrix) else stored
    np.testing.assert_array_equal(read(path, 25.0).frames[0], wanted)


def placed(stored: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Every pixel where the matrix puts it: (x', y') = (x, y) matrix."""
    height, width = stored.shape[:2]
    y, x = np.mgrid[:height, :width]
    at = np.stack([x, y], axis=-1) @ np.rint(matrix).astype(int)
    at -= at.min(axis=(0, 1))
    found = np.zeros((at[..., 1].max() + 1, at[..., 0].max() + 1, 3), np.uint8)
    found[at[..., 1], at[..., 0]] = stored
    return found


def test_a_turned_picture_with_wide_pixels(tmp_path: Path) -> None:
    from fractions import Fraction

    clip = read(turned(tmp_path / "both.mp4", 90, False, Fraction(2, 1)), 25.0)
    assert clip.frames.shape[1:] == (128, 48, 3)


def bars() -> NDArray[np.uint8]:
    """Eight colours side by side, 64 x 48."""
    colours = [(r, g, b) for r in (40, 210) for g in (40, 210) for b in (40, 210)]
    return np.repeat(np.asarray(colours, np.uint8)[None], 48, axis=0).repeat(8, axis=1)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("h264", "yuv444p", ".mp4"),
        ("h264", "yuv420p10le", ".mkv"),
        ("h264", "yuv422p10le", ".mkv"),
        ("h264", "yuvj420p", ".mp4"),
        ("ffv1", "yuv444p16le", ".mkv"),
        ("ffv1", "gray", ".mkv"),
        ("ffv1", "bgra", ".mkv"),
        ("ffv1", "gbrp12le", ".mkv"),
        ("mjpeg", "yuvj422p", ".mov"),
        ("png", "rgb48be", ".mov"),
        ("prores_ks", "yuva444p10le", ".mov"),
        ("qtrle", "argb", ".mov"),
        ("vp9", "yuv420p", ".webm"),
        ("rawvideo", "yuyv422", ".avi"),
    ],
)
def test_other_formats_have_the_same_colours(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    path = write_file(tmp_path / f"bars{suffix}", [bars()] * 3, codec=codec, pix_fmt=pix_fmt)
    clip = read(path, 25.0)
    inside = (slice(4, -4), slice(3, None, 8))  # away from edges, where the colour planes are coarse
    wanted = bars() if pix_fmt != "gray" else np.asarray(Image.fromarray(bars()).convert("L"))[..., None]
    assert np.abs(clip.frames[0][inside].astype(int) - wanted[inside]).max() < 14
    np.testing.assert_array_equal(clip.frames[0], sequential(path)[1][0])


def test_full_range_is_not_stretched(tmp_path: Path) -> None:
    """Grey 16 and 235 of the whole range are no black and white; the same numbers of the usual range are."""

    def mark(stream: Any) -> None:
        stream.codec_context.color_range = 2

    levels = [np.full((48, 64, 3), value, np.uint8) for value in (0, 16, 128, 235, 255)]
    path = write_file(tmp_path / "full.mp4", levels, pix_fmt="yuvj420p", mark=mark)
    assert greys(read(path, 25.0).frames) == pytest.approx([0, 16, 128, 235, 255], abs=3)


def greys(frames: NDArray[np.uint8]) -> list[float]:
    return [float(frame.mean()) for frame in frames]


def as_signal(levels: list[float], codec_range: int = 1023) -> list[NDArray[np.uint16]]:
    """Grey pictures of a signal from 0 to 1, as planes of 10 bits in the usual range."""
    return [np.full((48, 64), round(64 + 876 * level), np.uint16) for level in levels]


def hdr_file(path: Path, transfer: int, levels: list[float]) -> Path:
    """HEVC's colours in a lossless file: BT.2020, ten bits, grey pictures of the given signal."""
    if not hasattr(av.VideoFrame, "color_trc"):
        pytest.skip(f"PyAV {av.__version__} cannot write a transfer function")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1
        for number, level in enumerate(levels):
            frame = av.VideoFrame(64, 48, "yuv420p10le")
            for plane, value in zip(frame.planes, (round(64 + 876 * level), 512, 512), strict=True):
                np.frombuffer(plane, np.uint16)[:] = value
            frame.pts, frame.color_trc, frame.color_primaries, frame.colorspace = number, transfer, 9, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("transfer", "white", "name"), [(16, 0.5807, "PQ"), (18, 0.75, "HLG")])
def test_hdr_is_brought_to_standard_range_and_said(tmp_path: Path, transfer: int, white: float, name: str) -> None:
    """The signal of a usual screen's white comes out bright, black black, and brighter light no darker."""
    path = hdr_file(tmp_path / "hdr.mkv", transfer, [0.0, white / 2, white, 0.9, 1.0])
    clip = read(path, 25.0)
    black, half, bright, brighter, brightest = greys(clip.frames)
    assert black < 2
    assert 40 < half < bright - 60
    assert 215 < bright <= brighter <= brightest
    assert brightest > 250
    assert any(f"HDR ({name})" in note for note in clip.notes)
    assert not clip.damaged


def test_hdr_that_only_the_container_tells_is_brought_to_standard_range(tmp_path: Path) -> None:
    def mark(stream: Any) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9

    path = write_file(tmp_path / "hdr.mov", flat([40, 150]), codec="prores_ks", pix_fmt="yuv422p10le", mark=mark)
    clip = read(path, 25.0)
    assert any("HDR (PQ)" in note for note in clip.notes)
    assert greys(clip.frames)[1] > 200  # 150 of 255 is above a usual screen's white in that signal


def test_transparent_parts_are_black_and_said(tmp_path: Path) -> None:
    picture = np.full((48, 64, 4), 200, np.uint8)
    picture[:, :32, 3], picture[:, 32:, 3] = 255, 0
    picture[24:, 32:, 3] = 128
    clip = read(write_file(tmp_path / "clear.mov", [picture] * 2, codec="qtrle", pix_fmt="argb"), 25.0)
    assert clip.frames[0][8, 8].tolist() == [200] * 3
    assert clip.frames[0][8, 40].tolist() == [0] * 3
    assert clip.frames[0][40, 40].tolist() == [100] * 3
    assert any("transparent" in note for note in clip.notes)
    opaque = write_file(tmp_path / "opaque.mov", [picture[..., :3]] * 2, codec="qtrle", pix_fmt="argb")
    assert not read(opaque, 25.0).notes


def test_interlaced_frames_come_whole_and_said(tmp_path: Path) -> None:
    path = write_file(tmp_path / "fields.ts", numbered(30), codec="mpeg2video", flags="+ildct+ilme", field_order="tt")
    clip = read(path, 25.0)
    assert numbers(clip.frames) == list(range(30))
    assert any("interlaced" in note for note in clip.notes)


# Streams.


def test_of_two_video_streams_the_one_with_frames_is_read(tmp_path: Path) -> None:
    def write(path: Path, first: int, second: int) -> Path:
        with av.open(str(path), "w") as container:
            streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
            for stream in streams:
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
            for stream, grey, count in zip(streams, (60, 200), (first, second), strict=True):
                for number, picture in enumerate(flat([grey] * count)):
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts = number
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
        return path

    both = read(write(tmp_path / "both.mp4", 10, 20), 25.0)
    assert greys(both.frames) == pytest.approx([60] * 10, abs=4)
    assert any("2 video streams" in note for note in both.notes)
    still = read(write(tmp_path / "still.mkv", 1, 20), 25.0)  # Matroska's tracks are no default here
    assert greys(still.frames) == pytest.approx([200] * 20, abs=4)
    second = write(tmp_path / "second.mp4", 0, 20)
    clip = read(second, 25.0)
    assert greys(clip.frames) == pytest.approx([200] * 20, abs=4)
    assert not clip.notes
    assert greys(fetch(second, [0.2])) == pytest.approx([200], abs=4)


@pytest.mark.parametrize("start", [-3.0, 7.5])
@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_times_count_from_the_first_frame(tmp_path: Path, start: float, suffix: str) -> None:
    path = write_file(
        tmp_path / f"start{suffix}",
        numbered(50),
        packets=later(start),
        container={"avoid_negative_ts": "disabled"} if suffix == ".mkv" else {"use_editlist": "0"},
    )
    clip = read(path, 5.0)
    assert numbers(clip.frames) == list(range(0, 50, 5))
    assert clip.seconds[0] == 0
    assert clip.duration == pytest.approx(2.0)


def test_an_edit_list_hides_what_lies_before_it(tmp_path: Path) -> None:
    path = write_file(tmp_path / "edited.mp4", numbered(100), g="12", bf="0")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # version and flags, one entry: length in milliseconds, first time in ticks
    ticks = int.from_bytes(data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20], "big")
    data[at : at + 8] = (2000).to_bytes(4, "big") + round(1.2 * ticks).to_bytes(4, "big")
    path.write_bytes(bytes(data))
    times, frames, _ = sequential(path)
    clip = read(path, 25.0)
    assert numbers(clip.frames)[:3] == numbers(np.stack(frames[:3])) == [30, 31, 32]
    assert len(clip.frames) == len(frames)
    assert clip.duration == pytest.approx(times[-1] + 0.04)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_an_encrypted_track_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_file(tmp_path / f"secret{suffix}", numbered(20), container=KEY)
    with pytest.raises(VideoError, match="is encrypted"):
        read(path)
    for data in (path, path.read_bytes()):  # as with a PyAV whose packets do not tell
        assert has_encrypted_track(File(path.name, data), told=False)
    assert not has_encrypted_track(File("clear", write_file(tmp_path / f"clear{suffix}", numbered(20))), told=False)
    assert not has_encrypted_track(File("other", write_file(tmp_path / "other.mkv", numbered(20))), told=False)


def test_sound_with_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    picture = tmp_path / "cover.png"
    Image.fromarray(bars()).save(picture)
    with av.open(str(path), "w") as container, av.open(str(picture)) as cover:
        sound = container.add_stream("libmp3lame", rate=44100)
        art = container.add_stream_from_template(cover.streams.video[0])
        art.disposition = int(av.stream.Disposition.attached_pic.value)  # PyAV 15 wants a number
        for packet in cover.demux():
            if packet.size:
                packet.stream = art
                container.mux(packet)
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 4410), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 44100
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    with pytest.raises(VideoError, match="no video stream, only a cover picture"):
        read(path)


# Decoding cannot start everywhere.


def test_keyframes_that_are_none_give_the_frames_of_a_plain_decode(tmp_path: Path) -> None:
    """x264's intra refresh marks points where a picture begins to be whole as keyframes."""
    path = write_file(
        tmp_path / "refresh.mp4", noise_shots([30] * 25), fps=30, g="60", **{"x264-params": "intra-refresh=1"}
    )
    one, many = read(path, 3.0, workers=1), read(path, 3.0, workers=4)
    np.testing.assert_array_equal(one.frames, many.frames)
    assert one.cuts == many.cuts
    times, frames, _ = sequential(path)
    np.testing.assert_array_equal(one.frames, np.stack(frames)[np.searchsorted(times, one.seconds + 1e-6) - 1])
    np.testing.assert_array_equal(fetch(path, [5.0, 15.0]), one.frames[[15, 45]])
