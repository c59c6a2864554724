"""Layers in float64 NumPy, one output position at a time, for tests of networks."""

import jax
import numpy as np


def wide(tree):
    """A tree of arrays in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def random_variables(variables, seed=0):
    """The same tree with random numbers, so that no scale is 1 and no statistic the first one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def convolution(x, kernel, *, stride, before):
    """``[batch, rows, columns, in]`` by ``[size, size, in / groups, out]``, zeros around it.

    Groups follow from the shapes; ``before`` is the zeros ahead of the first row and column.
    """
    size, _, per_group, out = kernel.shape
    groups = x.shape[-1] // per_group
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    padded = np.zeros((len(x), x.shape[1] + 2 * size, x.shape[2] + 2 * size, x.shape[3]))
    padded[:, before : before + x.shape[1], before : before + x.shape[2]] = x
    y = np.zeros((len(x), rows, columns, out))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            window = padded[:, top : top + size, left : left + size]
            for group in range(groups):
                ins = slice(group * per_group, (group + 1) * per_group)
                outs = slice(group * out // groups, (group + 1) * out // groups)
                y[:, row, column, outs] = np.einsum(
                    "bhwc,hwco->bo", window[..., ins], kernel[..., outs]
                )
    return y


def normalize(x, params, stats, epsilon):
    """Batch normalization by running statistics."""
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + epsilon)
    return x * params["scale"] + params["bias"]


def unit(x):
    """Vectors of unit length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
