"""`patches`: what a convolution sees at each place, so that `unroll` is a convolutional layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from hyprjax._checks import arguments


def patches(
    x: Shaped[Array, "t *batch h w c"],
    window: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: str = "SAME",
) -> Shaped[Array, "t *batch h_out w_out kh*kw*c"]:
    """The patches of images that a convolution multiplies with its kernel.

    `unroll` of the patches is a convolutional layer: height and width are batch axes, the channels are the neurons,
    and each place has eligibility traces of its own for the weights that all places share. The rows of `w_in` are in
    the order `(kh, kw, c)`, so that `w_in.reshape(kh, kw, c, n)` is the kernel that JAX and Flax use:

    ```python
    kernel, layout = w_in.reshape(kh, kw, c, n), ("NHWC", "HWIO", "NHWC")
    current = jax.lax.conv_general_dilated(x[t], kernel, stride, padding, dimension_numbers=layout)
    current == patches(x, (kh, kw), stride=stride, padding=padding)[t] @ w_in
    ```

    `w_rec` connects the channels of one place. The traces of a state variable are `h_out w_out (kh kw c + 1) n`
    numbers for each image, more than the states that BPTT keeps if there are fewer than `kh kw c` steps. With
    `traces="factored", trace_rank=1`, exact for `lif` with one time constant, they are `h_out w_out (kh kw c + n)`.

    Args:
      x: images over time, channels last; any dtype.
      window: height and width of a patch `(kh, kw)`, or one int for both.
      stride: places from one patch to the next, down and across, or one int for both.
      padding: `"SAME"`: zeros around the image, so that `h_out = ceil(h / stride)`; `"VALID"`: patches inside of the
        image only.

    Returns:
      The patches, each as one row of features.

    Raises:
      ValueError: `x` has too few axes, the window does not fit into the image, or an argument is out of range.
      TypeError: `window` or `stride` is neither an int nor a pair of ints.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.lif()
      >>> images = jnp.ones((20, 8, 28, 28, 1))  # 20 steps, 8 images of one channel
      >>> layer = hj.init_layer(jax.random.key(0), cell, n_in=5 * 5 * 1, n_out=6)
      >>> hj.unroll(cell, layer, hj.patches(images, 5, stride=2)).shape
      (20, 8, 14, 14, 6)
    """
    x = jnp.asarray(x)
    if x.ndim < 4:
        raise ValueError(
            f"patches: x must be [T, *batch, height, width, channels], got x.shape = {x.shape}; "
            "images of one channel are x[..., None]"
        )
    (kh, kw), (down, across) = _pair("window", window), _pair("stride", stride)
    arguments.choice("patches: padding", padding, ("SAME", "VALID"))
    h, w = x.shape[-3:-1]
    if padding == "VALID" and (kh > h or kw > w):
        raise ValueError(
            f"patches: a window of {kh} x {kw} does not fit into images of {h} x {w} (x.shape = {x.shape}, height and "
            'width before channels); take a smaller one, or padding="SAME"'
        )
    x = _neighbours(x, x.ndim - 2, kw, across, padding)
    x = _neighbours(x, x.ndim - 3, kh, down, padding)
    return x


def _neighbours(x: Array, axis: int, size: int, stride: int, padding: str) -> Array:
    """A window along one axis: the entries that it covers at each place, side by side as channels.

    Slices, not a convolution with unit kernels: exact in every dtype, and on every device.
    """
    ends = jax.lax.padtype_to_pads((x.shape[axis],), (size,), (stride,), padding)
    x = jnp.pad(x, [*[(0, 0)] * axis, *ends, *[(0, 0)] * (x.ndim - axis - 1)])
    stop = x.shape[axis] - size + 1
    covered = [jax.lax.slice_in_dim(x, start, stop + start, stride, axis) for start in range(size)]
    return jnp.concatenate(covered, axis=-1)


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    values = (value, value) if np.ndim(value) == 0 else tuple(value)  # pyright: ignore[reportArgumentType]
    if len(values) != 2:
        raise ValueError(f"patches: {name} must be an int or a pair (height, width), got {value!r}")
    height, width = (arguments.positive_int(f"patches: {name}", one) for one in values)
    return height, width
