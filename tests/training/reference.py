"""A training step as a textbook writes it: flax's own layers, plain losses and updates.

Parameters have the names of the real networks', so that trees can be compared leaf by leaf.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def norm(x, name):
    """flax's batch normalization, with the batch's statistics."""
    return nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, name=name)(x)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class TinyEncoder(nn.Module):
    """:class:`tests.training.tiny.Encoder`."""

    @nn.compact
    def __call__(self, crops):
        x = nn.Dense(12, use_bias=False, name="Dense_0")(crops)
        x = nn.relu(norm(x, "BatchNorm_0"))
        return unit(nn.Dense(8, name="Dense_1")(x.mean(axis=1)))


class ResNet(nn.Module):
    """:class:`asdproto.models.resnet.ResNet`."""

    width: int
    stages: tuple[int, ...]

    @nn.compact
    def __call__(self, crops):
        def conv(x, features, size, stride, name):
            pad = (size // 2, size // 2)
            layer = nn.Conv(
                features, (size, size), stride, padding=(pad, pad), use_bias=False, name=name
            )
            return layer(x)

        x = conv(crops[..., None], self.width, 7, 2, "stem")
        x = nn.relu(norm(x, "stem_norm"))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                name, features = f"stage{stage + 1}_block{block + 1}", self.width * 2**stage
                stride = 2 if stage and not block else 1
                y = conv(x, features, 3, stride, f"{name}_conv1")
                y = nn.relu(norm(y, f"{name}_norm1"))
                y = norm(conv(y, features, 3, 1, f"{name}_conv2"), f"{name}_norm2")
                if stride > 1:
                    x = conv(x, features, 1, stride, f"{name}_project")
                    x = norm(x, f"{name}_project_norm")
                x = nn.relu(x + y)
        return unit(Pool(name="pool")(x))


class Pool(nn.Module):
    """Time-frequency attention pooling of ``[batch, time, frequency, channels]``."""

    @nn.compact
    def __call__(self, x):
        def weights(axis, summary):
            hidden = jnp.tanh(nn.Dense(x.shape[-1] // 4, name=f"{axis}_hidden")(summary))
            logits = nn.Dense(1, use_bias=False, name=f"{axis}_logit")(hidden)
            return jax.nn.softmax(logits, axis=1)[..., 0]

        a, b = weights("time", x.mean(axis=2)), weights("frequency", x.mean(axis=1))
        return jnp.einsum("bt,bf,btfc->bc", a, b, x)


def expanded_loss(z, labels, prototypes, temperature):
    """Eq. 3, one anchor after the other; ``prototypes`` is ``[classes, per_class, dim]``."""
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = prototypes @ anchor / temperature
        total = jnp.sum(jnp.exp(logits))
        losses.append(-jnp.mean(jnp.log(jnp.exp(logits[label]) / total)))
    return jnp.stack(losses)


def negative_loss(config, z, mix):
    """Eq. 6 (Eq. 1 without mixing) against the batch's prototypes, one anchor after the other."""
    losses, ways = [], np.repeat(np.arange(config.ways), config.shots)
    for index, (anchor, way) in enumerate(zip(z, ways, strict=True)):
        prototypes = []
        for other in range(config.ways):
            members = ways == other
            if config.leave_one_out and other == way:
                members[index] = False
            prototypes.append(unit(jnp.sum(z[members], axis=0)))
        prototypes = jnp.stack(prototypes)
        if config.stop_gradient:
            prototypes = jax.lax.stop_gradient(prototypes)
        logits = [prototypes @ anchor / config.temperature]
        if config.mix_range is not None:
            coefficients = mix[index][:, None]
            mixed = coefficients * anchor + (1 - coefficients) * prototypes
            if config.normalize_mixed:
                mixed = unit(mixed)
            others = np.delete(np.arange(config.ways), way)
            logits.append(mixed[others] @ anchor / config.temperature)
        logits = jnp.concatenate(logits)
        losses.append(-jnp.log(jnp.exp(logits[way]) / jnp.sum(jnp.exp(logits))))
    return jnp.stack(losses)


def step(encoder, loss_fn, params, batch_stats, velocity, rate, crops, *targets):
    """One update of stochastic gradient descent.

    Returns:
      Loss, and the new parameters, batch statistics and velocity.
    """

    def loss_of(params):
        variables = {"params": params, "batch_stats": batch_stats}
        z, updated = encoder.apply(variables, crops, mutable=["batch_stats"])
        return jnp.mean(loss_fn(z, *targets)), updated["batch_stats"]

    (loss, batch_stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-5 * p, velocity, gradient, params)
    params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
    return loss, params, batch_stats, velocity
