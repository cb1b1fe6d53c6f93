"""Files that are no sound video: each is a clear error or what can still be read of it, never a crash or a hang."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_files import flat, numbered, numbers, write_file
from video_reader import Reader

from segmo.video import read
from segmo.video.source import VideoError


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [
        write_file(folder / "plain.mp4", numbered(40), g="8"),
        write_file(folder / "reordered.mp4", numbered(40), g="8", bf="2", preset="medium"),
        write_file(folder / "matroska.mkv", numbered(40), g="8"),
        write_file(folder / "old.avi", numbered(40), codec="mpeg4"),
    ]


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    process = Reader()
    yield process
    process.close()


def sound_file(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())
    return path


def without_frames(path: Path) -> Path:
    """An mp4 whose video track is announced and empty."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def text_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no file"):
        read(tmp_path / "none.mp4")


@pytest.mark.parametrize("address", ["http://example.invalid/a.mp4", "concat:a.mp4|b.mp4", "pipe:0"])
def test_an_address_is_not_a_file(address: str) -> None:
    with pytest.raises(VideoError, match="there is no file"):
        read(address)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="is not a file"):
        read(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"is empty \(0 bytes\)"):
        read(text_file(tmp_path / "empty.mp4", ""))


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "list.m3u8", "list.ffconcat"])
def test_text_is_not_a_video(tmp_path: Path, name: str) -> None:
    heads = {"list.m3u8": "#EXTM3U\n#EXTINF:9,\nother.ts\n", "list.ffconcat": "ffconcat version 1.0\nfile other.mp4\n"}
    with pytest.raises(VideoError, match=r"not a video|no video stream"):
        read(text_file(tmp_path / name, heads.get(name, "What happens in this video?\n" * 50)))


def test_a_file_with_sound_only(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="has no video stream"):
        read(sound_file(tmp_path / "sound.wav"))


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"without a single frame|not a video"):
        read(without_frames(tmp_path / "none.mp4"))


def test_an_mp4_cut_off_before_its_table_of_contents(tmp_path: Path, sources: list[Path]) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(sources[0].read_bytes()[:1500])
    with pytest.raises(VideoError, match="not a video that FFmpeg can read"):
        read(path)


def test_a_file_that_breaks_off_gives_what_is_there(tmp_path: Path, sources: list[Path]) -> None:
    data = sources[2].read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) * 2 // 3])
    clip = read(path, 25.0)
    found = numbers(clip.frames)
    assert found == list(range(len(found)))
    assert 8 < len(found) < 40
    assert clip.duration == pytest.approx(len(found) / 25)


def test_damage_in_the_middle_is_noted(tmp_path: Path) -> None:
    source = write_file(tmp_path / "sound.mp4", numbered(60), g="10")
    data = bytearray(source.read_bytes())
    at = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 3
    data[at : at + 300] = bytes(range(100, 200)) * 3
    path = tmp_path / "damaged.mp4"
    path.write_bytes(bytes(data))
    clip = read(path, 25.0)
    assert numbers(clip.frames[:5]) == [0, 1, 2, 3, 4]
    assert numbers(clip.frames[-5:]) == [55, 56, 57, 58, 59]
    assert any("damaged packet" in note for note in clip.notes)


def test_a_header_that_asks_for_a_giant_picture(tmp_path: Path) -> None:
    path = write_file(tmp_path / "giant.avi", flat([9] * 3), codec="rawvideo", pix_fmt="bgr24")
    data = path.read_bytes().replace((64).to_bytes(4, "little"), (60_000).to_bytes(4, "little"))
    path.write_bytes(data.replace((48).to_bytes(4, "little"), (60_000).to_bytes(4, "little")))
    with pytest.raises(VideoError, match=r"60000 x 60000 pixels|not a video|no frame"):
        read(path)


edits = st.lists(
    st.tuples(st.sampled_from(["cut", "flip", "noise", "drop", "repeat"]), st.floats(0, 1), st.integers(0, 2**32)),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, kind: str, place: float, seed: int) -> bytes:
    """The bytes with one stretch of them changed."""
    rng = np.random.default_rng(seed)
    start = int(place * (len(data) - 1)) if data else 0
    end = min(len(data), start + int(rng.integers(1, 400)))
    match kind:
        case "cut":
            return data[: max(1, start)]
        case "flip":
            return data[:start] + bytes([data[start] ^ 1 << int(rng.integers(8))]) + data[start + 1 :]
        case "noise":
            return data[:start] + rng.bytes(end - start) + data[end:]
        case "drop":
            return data[:start] + data[end:]
        case _:
            return data[:end] + data[start:]


@settings(max_examples=150)
@given(which=st.integers(0, 3), changes=edits)
def test_any_bytes_are_read_or_refused(
    sources: list[Path], reader: Reader, tmp_path_factory: pytest.TempPathFactory, which: int, changes: list
) -> None:
    data = sources[which].read_bytes()
    for kind, place, seed in changes:
        data = edited(data, kind, place, seed) or b"\0"
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    path.write_bytes(data)
    assert reader(path).split()[0] in ("frames", "error")


@settings(max_examples=40)
@given(
    data=st.binary(min_size=1, max_size=2000),
    head=st.sampled_from([b"", b"\0\0\0 ftypisom", b"\x1aE\xdf\xa3", b"RIFF"]),
)
def test_bytes_from_nowhere_are_refused(
    reader: Reader, tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "nowhere.bin"
    path.write_bytes(head + data)
    assert reader(path).split()[0] in ("frames", "error")


def test_the_reader_of_these_tests_tells_sound_from_broken(reader: Reader, sources: list[Path], tmp_path: Path) -> None:
    assert reader(sources[0]) == "frames 4"
    assert reader(tmp_path / "none.mp4").startswith("error there is no file")
