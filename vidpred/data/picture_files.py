"""One picture file as upright RGB pixels, or the reason why it is none.

What is not RGB already is converted so that nothing is lost but what eight bits, three colours and an opaque
ground cannot hold: 16 bits are rounded to 8, transparency is laid over white, CMYK becomes RGB by Pillow's plain
formula, and a picture that was taken with the camera turned is turned upright.
"""

import struct
import warnings
from pathlib import Path
from typing import Any, Optional

import numpy as np

from vidpred.data.clips import ClipError
from vidpred.data.decoding import check_file

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
OPAQUE, SEE_THROUGH = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"), ("LA", "La", "PA", "RGBA", "RGBa")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# What Pillow lets out of its own arithmetic with damaged headers, TIFF directories and EXIF.
PILLOW_DAMAGES = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, TypeError, OverflowError,
    ZeroDivisionError,
)  # fmt: skip


def read_picture(path: Path, size: Optional[tuple[int, int]] = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises ClipError.

    `size` (height, width) lets a JPEG shrink while it is decoded, by 2, 4 or 8, and never below it.
    """
    from PIL import Image, UnidentifiedImageError

    # Absolute, and a file: a name that begins with a dash, or a pipe, is nothing to be opened.
    path = check_file(path)
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", message="Corrupt EXIF")  # a picture without a direction is upright
            _require_one_frame(image)
            if size is not None:
                image.draft(None, (max(size), max(size)))  # not yet turned: a square covers both directions
            return _upright_rgb(image)
    except UnidentifiedImageError as error:
        raise ClipError("is not a picture: in no format that is known") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ClipError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels; shrink it") from error
    except PILLOW_DAMAGES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = "truncated" if "truncated" in reason.lower() else "damaged"
        raise ClipError(f"{kind}: {reason[:200]}") from error


def _require_one_frame(image: Any) -> None:
    """Raises ClipError for animations and stacks; a phone's MPO file is its first picture, with previews after it."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ClipError(f"holds {frames} pictures; save the one that is meant as a file of its own")


def _upright_rgb(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 of an opened picture."""
    from PIL import Image, ImageOps

    # Older versions of Pillow read a PNG of 16 bits as one of 32.
    sixteen_bits = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if sixteen_bits:
        return _from_sixteen_bits(np.asarray(image))
    if image.mode in SEE_THROUGH or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in OPAQUE:
        raise ClipError(f"has pixels of type {image.mode}; convert it to 8 or 16 bits")
    # A copy: a picture's own memory stays closed to writing.
    return np.array(image.convert("RGB"))


def _from_sixteen_bits(grey: np.ndarray) -> np.ndarray:
    """(H, W) in 0 .. 65535 -> (H, W, 3) uint8, rounded: 65535 is 255 times 257. Raises ClipError."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ClipError("has grey values of more than 16 bits; convert it to 8 or 16 bits")
    levels = ((grey.astype(np.int64) + 128) // 257).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)
