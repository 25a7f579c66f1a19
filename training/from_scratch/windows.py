"""The windows that a kernel sees as it slides over images, and the way back from windows to images."""

from __future__ import annotations

import numpy as np

from training.from_scratch.layer import Floats, Pair


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """Positions of the kernel, floor((size - kernel + 2 padding) / stride) + 1, along rows and along columns.

    Raises ValueError when the kernel is larger than the padded image.
    """
    rows, columns = (
        (side - reach + 2 * border) // step + 1
        for side, reach, step, border in zip(size, kernel, stride, padding, strict=True)
    )
    if rows < 1 or columns < 1:
        raise ValueError(f"a kernel of {kernel} does not fit images of {size} with padding {padding}")
    return rows, columns


def pad(x: Floats, padding: Pair, value: float = 0.0) -> Floats:
    """`x` [n, c, h, w] with `padding` rows above and below and columns left and right, filled with `value`."""
    if padding == (0, 0):
        return x
    rows, columns = padding
    return np.pad(x, ((0, 0), (0, 0), (rows, rows), (columns, columns)), constant_values=value)


def crop(x: Floats, padding: Pair) -> Floats:
    """What `pad` was given, cut out of what it returned."""
    rows, columns = padding
    return x[:, :, rows : x.shape[2] - rows, columns : x.shape[3] - columns]


def windows(x: Floats, kernel: Pair, stride: Pair) -> Floats:
    """A read-only view [n, c, kernel rows, kernel columns, rows, columns] of `x` [n, c, h, w]; nothing is copied.

    Entry [..., u, v, i, j] is the pixel that cell (u, v) of the kernel meets at position (i, j). With the positions
    last, a copy of it runs along the images' rows in memory.
    """
    output_size((x.shape[2], x.shape[3]), kernel, stride, (0, 0))
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1]].transpose(0, 1, 4, 5, 2, 3)


def add_windows(seen: Floats, size: Pair, stride: Pair) -> Floats:
    """The transpose of `windows`: images [n, c, *size] where each pixel is the sum of its places in `seen`.

    One strided addition for each cell of the kernel, whatever the size of the images.
    """
    count, channels, kernel_rows, kernel_columns, rows, columns = seen.shape
    images = np.zeros((count, channels, *size), seen.dtype)
    for u, v in np.ndindex(kernel_rows, kernel_columns):
        down = slice(u, u + stride[0] * rows, stride[0])
        across = slice(v, v + stride[1] * columns, stride[1])
        images[:, :, down, across] += seen[:, :, u, v]
    return images
