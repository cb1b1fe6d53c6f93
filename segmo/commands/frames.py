"""``segmo frames``: what is read of a video, so that a user can see what a model sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from segmo.video import Clip

PIXELS = 160 * 120  # of a picture on the sheet, at most
COLUMNS, GAP, LABEL = 8, 4, 14  # pictures side by side; pixels between them, and of the line below each


def frames(
    video: Annotated[str, typer.Argument(help="a video file, an address, or a folder of pictures")],
    fps: Annotated[float, typer.Option(help="frames to sample per second")] = 2.0,
    max_frames: Annotated[int | None, typer.Option(help="frames at most, spread over the video")] = None,
    start: Annotated[float | None, typer.Option(help="first second of the part to sample")] = None,
    end: Annotated[float | None, typer.Option(help="last second of it")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    sheet: Annotated[Path | None, typer.Option(help="write the frames with their times into one picture")] = None,
) -> None:
    """Show which frames are read of a video: their times, their size as a player shows them, and what was mended."""
    import json

    from segmo.video import read

    clip = read(video, fps, max_pixels=PIXELS, max_frames=max_frames, start=start, end=end)
    found = describe(clip)
    if sheet is not None:
        write_sheet(clip, sheet)
    if as_json:
        print(json.dumps(found))
    else:
        _print(found, sheet)


def describe(clip: Clip) -> dict[str, Any]:
    """What was read, JSON-able; sizes in pixels, times in seconds from the first frame."""
    index = clip.index
    assert index is not None  # it was just read
    width, height = index.size
    return {
        "video": str(clip.source),
        "width": width,
        "height": height,
        "stored_width": index.stored[0],
        "stored_height": index.stored[1],
        "duration": clip.duration,
        "file_frames": len(index.times),
        "file_fps": index.rate,
        "fps": clip.fps,
        "frames": len(clip.frames),
        "times": clip.seconds.tolist(),
        "cuts": list(clip.cuts),
        "damaged": clip.damaged,
        "notes": list(clip.notes),
    }


def _print(found: dict[str, Any], sheet: Path | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    stored = f"{found['stored_width']} x {found['stored_height']}"
    shown = f"{found['width']} x {found['height']}"
    lines = [
        found["video"],
        f"{found['duration']:.2f} s, {found['file_frames']} frames, {len(found['cuts']) + 1} scenes",
        f"shown at {shown} pixels" + ("" if stored == shown else f", stored at {stored}"),
        f"{found['frames']} frames sampled at {found['fps']:g} a second: "
        + " ".join(f"{time:.2f}" for time in found["times"]),
        *(f"note: {note}" for note in found["notes"]),
        *([f"sheet: {sheet}"] if sheet else []),
    ]
    for line in lines:
        console.print(line, markup=False)


def write_sheet(clip: Clip, path: Path) -> None:
    """All sampled frames in one picture, each with its time; the first of a scene has its time in red.

    Raises:
        OptionError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    from segmo.errors import OptionError

    height, width = clip.frames.shape[1:3]
    columns = min(COLUMNS, len(clip.frames))
    rows = -(-len(clip.frames) // columns)
    step_x, step_y = max(width, 40) + GAP, height + LABEL + GAP
    page = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    draw = ImageDraw.Draw(page)
    scenes = clip.scene_F.tolist()
    for number, (pixels, second) in enumerate(zip(clip.frames, clip.seconds, strict=True)):
        x, y = GAP + number % columns * step_x, GAP + number // columns * step_y
        page.paste(Image.fromarray(pixels), (x, y))
        first = number == 0 or scenes[number] != scenes[number - 1]
        draw.text((x, y + height + 1), f"{second:.2f} s", fill="firebrick" if first else "black")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be written as a picture: {error}") from error
