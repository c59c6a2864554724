"""What a loop on an accelerator carries instead of parameters. Nothing here changes a result.

Skip this module on a first reading. :func:`asdproto.training.epoch.scan_steps` packs the state
before its loop and unpacks it after; to a step, :func:`value_and_grad` is that of JAX.

Two things pay, each measured alone by ``experiments/benchmarks/program.py`` for an H100 (width 64,
bfloat16; kernels and megabytes of a step):

=========================================  ============  ===========  =================
..                                         pre-training  fine-tuning  8 runs, pre-train
=========================================  ============  ===========  =================
as it is                                   258, 884      284, 1,917   299, 8,150
without the vector of small parameters     269, 883      292, 1,915   303, 8,153
without kernels in the dtype of the model  280, 930      306, 1,962   323, 8,743
=========================================  ============  ===========  =================

The vector pays in single runs, 4 and 3 % of the kernels, and hardly in sweeps. ``optax.flatten``
under ``optax.partition`` makes one update of many small ones, too, but parameters go into the loop
and out of it one by one: 315 kernels where the vector had 263, measured when loops carried each
small parameter twice.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from asdproto.training.state import TrainState

# A leaf of more numbers is worth a program of its own.
LIMIT = 1024


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the leaves of a tree are in its packed form.

    Attributes:
      treedef: Structure of the tree.
      shapes: Of every leaf.
      small: Whether a leaf belongs to the vector.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[bool, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree whose small leaves are side by side in one vector.

    A network has dozens of parameters of a few hundred numbers (scales, biases). To an accelerator
    the update of each costs as much as that of them all.

    Attributes:
      vector: float32, the small leaves one after the other.
      large: The other leaves in order.
      layout: Where each leaf is; static.
    """

    vector: jax.Array
    large: list[jax.Array]
    layout: Layout = dataclasses.field(metadata={"static": True})


def _pack(tree: Any, layout: Layout) -> Packed:
    leaves = list(zip(layout.treedef.flatten_up_to(tree), layout.small, strict=True))
    vector = [jnp.zeros(0), *(leaf.reshape(-1) for leaf, small in leaves if small)]
    return Packed(jnp.concatenate(vector), [leaf for leaf, small in leaves if not small], layout)


def unpack(tree: Any) -> Any:
    """The tree that was packed; anything else as it is."""
    if not isinstance(tree, Packed):
        return tree
    layout, large = tree.layout, iter(tree.large)
    sizes = [math.prod(s) for s, small in zip(layout.shapes, layout.small, strict=True) if small]
    parts = iter(lax.split(tree.vector, sizes) if sizes else [])
    return layout.treedef.unflatten(
        next(parts).reshape(shape) if small else next(large)
        for shape, small in zip(layout.shapes, layout.small, strict=True)
    )


def pack_state(state: TrainState, dtype: Any, *, join: bool = True) -> TrainState:
    """The state with its parameters, and what the optimizer keeps for each, packed.

    Args:
      state: The state.
      dtype: Of the encoder's arithmetic. The state gets ``weights``: the large kernels of the
        encoder in this dtype. A module casts its kernel at every use; a loop that carries these
        writes them where it writes the parameters.
      join: Whether small parameters become one vector; not where the optimizer looks at a parameter
        as a whole.

    Returns:
      The state for a loop.
    """
    leaves, treedef = jax.tree.flatten(state.params)
    small = tuple(join and x.size <= LIMIT and x.dtype == jnp.float32 for x in leaves)
    layout = Layout(treedef, tuple(x.shape for x in leaves), small)

    def is_like_params(tree: Any) -> bool:
        return jax.tree.structure(tree) == treedef  # type: ignore[operator]

    def convert(tree: Any) -> Any:
        return _pack(tree, layout) if is_like_params(tree) else tree

    def cast(path: Any, x: jax.Array) -> jax.Array | None:
        kernel = path[0].key == "encoder" and x.ndim > 1 and x.size > LIMIT
        return x.astype(dtype) if kernel and x.dtype != dtype else None

    weights = [cast(*leaf) for leaf in jax.tree_util.tree_leaves_with_path(state.params)]
    return state._replace(
        params=_pack(state.params, layout),
        optimizer=jax.tree.map(convert, state.optimizer, is_leaf=is_like_params),
        weights=[x for x, in_vector in zip(weights, small, strict=True) if not in_vector],
    )


def with_weights(state: TrainState) -> Any:
    """The parameters that a step computes with: in a loop, kernels are its ``weights``."""
    if state.weights is None:
        return state.params
    pairs = zip(state.weights, state.params.large, strict=True)
    return dataclasses.replace(state.params, large=[p if w is None else w for w, p in pairs])


def value_and_grad(loss_fn: Callable[[Any], Any], state: TrainState) -> tuple[Any, Any]:
    """Value and gradient of a loss at the state's parameters, packed or not.

    Args:
      loss_fn: From parameters, not packed, to a loss and what else the step needs of it.
      state: The state; the loss is taken at :func:`with_weights`.

    Returns:
      What ``loss_fn`` returns, and the gradient, packed and of the dtypes of ``state.params``.
    """
    run = jax.value_and_grad(lambda params: loss_fn(unpack(params)), has_aux=True)
    value, gradient = run(with_weights(state))
    return value, optax.tree.cast_like(gradient, state.params)


def renew_weights(state: TrainState) -> TrainState:
    """The state of a loop after a step, with ``weights`` of the new parameters."""
    pairs = zip(state.weights, state.params.large, strict=True)
    return state._replace(weights=[None if w is None else p.astype(w.dtype) for w, p in pairs])


def unpack_state(state: TrainState) -> TrainState:
    """The state that was packed."""

    def is_packed(tree: Any) -> bool:
        return isinstance(tree, Packed)

    return jax.tree.map(unpack, state._replace(weights=None), is_leaf=is_packed)
