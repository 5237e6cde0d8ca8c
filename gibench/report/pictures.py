"""Pictures of the report: PNG data URIs, an animated GIF, and the strip "private next to reconstructed"."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor

from gibench.records import folder_name

THUMBNAIL = 64
"""Longest side, in pixels, of a picture inside the page; larger images are averaged down to it."""

GAP = 4
ACCENT, NEUTRAL, INK = (15, 118, 110), (120, 126, 134), (27, 31, 36)


def picture_path(run_folder: Path, scenario: str, attack: str, update_id: str) -> Path:
    """Where a run stores `images` and `private` (B, C, H, W) of one update."""
    parts = [folder_name(part) for part in (scenario, attack, update_id)]
    return run_folder.joinpath("reconstructions", *parts[:2], f"{parts[2]}.safetensors")


def load_animation(run_folder: Path, scenario: str, attack: str) -> dict[str, Tensor] | None:
    """Return `frames` (T, C, H, W), `steps` and `objective` (T,), `private` (C, H, W), or None where none is stored."""
    path = run_folder / "animation" / folder_name(scenario) / f"{folder_name(attack)}.safetensors"
    return load_file(path) if path.is_file() else None


def to_image(image: Tensor) -> Image.Image:
    """Turn (C, H, W) in [0, 1] into 8 bits; NaN is drawn gray, and other than 3 channels as their mean."""
    pixels = image.detach().float().cpu().nan_to_num(nan=0.5).clamp(0, 1)
    pixels = (255 * (pixels if len(pixels) == 3 else pixels.mean(dim=0, keepdim=True))).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array if len(pixels) == 3 else array[:, :, 0])


def png_uri(image: Tensor) -> str:
    """Return a data URI of (C, H, W) in [0, 1] as PNG, averaged down to at most THUMBNAIL pixels per side."""
    buffer = io.BytesIO()
    _thumbnail(to_image(image)).save(buffer, "PNG", optimize=True)
    return _uri(buffer, "image/png")


def gif_uri(frames: Tensor, private: Tensor, *, most_frames: int = 25, side: int = 128) -> str:
    """Return a data URI of an animated GIF: private at the left, the reconstruction at the right, last frame held.

    frames: (T, C, H, W) and private: (C, H, W), in [0, 1]. Of T frames at most `most_frames` are shown, evenly spaced,
    the first and the last among them; a bar shows the progress. Pixels are enlarged by repetition to about `side`.
    """
    chosen = torch.linspace(0, len(frames) - 1, min(most_frames, len(frames))).round().long().tolist()
    truth = _enlarged(to_image(private), side)
    pictures = [_frame(truth, _enlarged(to_image(frames[i]), side), i / max(len(frames) - 1, 1)) for i in chosen]
    durations = [140] * (len(pictures) - 1) + [2500]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return _uri(buffer, "image/gif")


def _enlarged(image: Image.Image, side: int) -> Image.Image:
    """Reduce to 120 colors, so that two pictures share the 256 of a GIF, then enlarge by repeating pixels."""
    image = _thumbnail(image).convert("RGB").quantize(120, dither=Image.Dither.NONE).convert("RGB")
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _frame(private: Image.Image, image: Image.Image, progress: float) -> Image.Image:
    """Both pictures side by side, over a bar that is filled up to `progress`."""
    width, height = private.size
    frame = Image.new("RGB", (2 * width + GAP, height + 2 * GAP), NEUTRAL)
    frame.paste(private, (0, 0))
    frame.paste(image, (width + GAP, 0))
    ImageDraw.Draw(frame).rectangle((0, height + GAP, round(progress * frame.width), frame.height), fill=ACCENT)
    return frame.quantize(256, dither=Image.Dither.NONE)


def draw_strip(rows: Sequence[tuple[str, str, Sequence[Tensor | None]]], *, side: int = 96) -> Image.Image:
    """Draw labelled rows of pictures on white: (label, note below it, one (C, H, W) image or None per column)."""
    gap, margin = 8, 16
    font, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    gutter = max(round(font.getlength(label)) for label, _, _ in rows) + 2 * gap
    gutter = max(gutter, max(round(small.getlength(note)) for _, note, _ in rows) + 2 * gap)
    columns = max(len(images) for _, _, images in rows)
    size = (2 * margin + gutter + columns * (side + gap) - gap, 2 * margin + len(rows) * (side + gap) - gap)
    strip = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(strip)
    for row, (label, note, images) in enumerate(rows):
        top = margin + row * (side + gap)
        draw.text((margin, top + side / 2 - 9), label, fill=INK, font=font, anchor="lm")
        draw.text((margin, top + side / 2 + 11), note, fill=NEUTRAL, font=small, anchor="lm")
        for column, image in enumerate(images):
            if image is not None:
                picture = to_image(image).convert("RGB")
                how = Image.Resampling.NEAREST if max(picture.size) <= side else Image.Resampling.BOX
                picture = picture.resize((side, side), how)
                strip.paste(picture, (margin + gutter + column * (side + gap), top))
    return strip


def _thumbnail(image: Image.Image) -> Image.Image:
    factor = THUMBNAIL / max(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BOX)


def _uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
