"""The losses again, from their papers, in slow float64 NumPy: loops, no masks, no tricks.

Every function takes one batch and returns one number per example. Classes that do not count are
left out of ``present``; examples that do not count are taken away by the caller.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from asdproto.prototypes import mix_negatives


def log_sum_exp(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def unit(x):
    return x / math.sqrt(float(x @ x))


def prototypical(z, prototypes, labels, present, *, temperature):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = {c: float(anchor @ prototypes[c]) / temperature for c in present}
        losses.append(log_sum_exp(list(logits.values())) - logits[label])
    return np.array(losses)


def multi_prototype(z, prototypes, labels, present, *, temperature):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = {c: [float(anchor @ p) / temperature for p in prototypes[c]] for c in present}
        everything = log_sum_exp([x for row in logits.values() for x in row])
        losses.append(sum(everything - x for x in logits[label]) / len(logits[label]))
    return np.array(losses)


def negative_prototype(z, prototypes, labels, present, mix, *, temperature, normalize=False):
    losses = []
    for i, (anchor, label) in enumerate(zip(z, labels, strict=True)):
        own = float(anchor @ prototypes[label]) / temperature
        logits = [float(anchor @ prototypes[c]) / temperature for c in present]
        for c in present:
            if c != label:
                mixed = mix[i, c] * anchor + (1 - mix[i, c]) * prototypes[c]
                mixed = unit(mixed) if normalize else mixed
                logits.append(float(anchor @ mixed) / temperature)
        losses.append(log_sum_exp(logits) - own)
    return np.array(losses)


def multi_negative_prototype(z, prototypes, labels, present, mix, *, temperature):
    losses = []
    for i, (anchor, label) in enumerate(zip(z, labels, strict=True)):
        logits = []
        for c in present:
            for m, p in enumerate(prototypes[c]):
                logits.append(float(anchor @ p) / temperature)
                if c != label:
                    mixed = mix[i, c, m] * anchor + (1 - mix[i, c, m]) * p
                    logits.append(float(anchor @ mixed) / temperature)
        own = [float(anchor @ p) / temperature for p in prototypes[label]]
        losses.append(log_sum_exp(logits) - sum(own) / len(own))
    return np.array(losses)


def softmax(z, prototypes, labels, present, bias, *, temperature):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = {c: float(anchor @ prototypes[c]) / temperature + bias[c] for c in present}
        losses.append(log_sum_exp(list(logits.values())) - logits[label])
    return np.array(losses)


def arcface(z, prototypes, labels, present, *, margin, scale):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = {}
        for c in present:
            angle = math.acos(max(-1.0, min(1.0, float(anchor @ prototypes[c]))))
            cosine = math.cos(angle)
            if c == label:
                widened = math.cos(angle + margin)
                cosine = (
                    widened if angle + margin <= math.pi else cosine - margin * math.sin(margin)
                )
            logits[c] = scale * cosine
        losses.append(log_sum_exp(list(logits.values())) - logits[label])
    return np.array(losses)


def cosface(z, prototypes, labels, present, *, margin, scale):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = {
            c: scale * (float(anchor @ prototypes[c]) - (margin if c == label else 0))
            for c in present
        }
        losses.append(log_sum_exp(list(logits.values())) - logits[label])
    return np.array(losses)


def adacos_scale(cosines, labels, scale):
    """From a list of {class: cosine}, one per example."""
    sums, angles = [], []
    for row, label in zip(cosines, labels, strict=True):
        sums.append(sum(math.exp(scale * x) for c, x in row.items() if c != label))
        angles.append(math.acos(max(-1.0, min(1.0, row[label]))))
    mean = sum(sums) / len(sums)
    return max(1.0, math.log(mean) / math.cos(min(math.pi / 4, float(np.median(angles)))))


def adacos(z, prototypes, labels, present, *, scale, adaptive=True):
    cosines = [{c: float(anchor @ prototypes[c]) for c in present} for anchor in z]
    if adaptive:
        scale = adacos_scale(cosines, labels, scale)
    losses = [
        log_sum_exp([scale * x for x in row.values()]) - scale * row[label]
        for row, label in zip(cosines, labels, strict=True)
    ]
    return np.array(losses)


def sub_cluster_adacos(z, prototypes, labels, present, *, scale):
    sums, angles = [], []
    for anchor, label in zip(z, labels, strict=True):
        cosines = {c: [float(anchor @ p) for p in prototypes[c]] for c in present}
        sums.append(sum(math.exp(scale * x) for row in cosines.values() for x in row))
        angles.append(min(math.acos(x) for x in cosines[label]))
    mean = sum(sums) / len(sums)
    scale = max(1.0, math.log(mean) / math.cos(min(math.pi / 4, float(np.median(angles)))))
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        terms = {c: [scale * float(anchor @ p) for p in prototypes[c]] for c in present}
        everything = log_sum_exp([x for row in terms.values() for x in row])
        losses.append(everything - log_sum_exp(terms[label]))
    return np.array(losses)


def adaproj(z, bases, labels, present, *, scale):
    cosines = []
    for anchor in z:
        row = {}
        for c in present:
            projected = sum(float(anchor @ w) * w for w in bases[c])
            row[c] = float(anchor @ unit(projected))
        cosines.append(row)
    scale = adacos_scale(cosines, labels, scale)
    losses = [
        log_sum_exp([scale * x for x in row.values()]) - scale * row[label]
        for row, label in zip(cosines, labels, strict=True)
    ]
    return np.array(losses)


def prototypical_network(z, prototypes, labels, present, *, temperature):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = {c: -float(np.sum((anchor - prototypes[c]) ** 2)) / temperature for c in present}
        losses.append(log_sum_exp(list(logits.values())) - logits[label])
    return np.array(losses)


def center(z, prototypes, labels, present):
    del present
    return np.array([np.sum((a - prototypes[y]) ** 2) / 2 for a, y in zip(z, labels, strict=True)])


def supervised_contrastive(z, labels, *, temperature):
    losses = []
    for i, anchor in enumerate(z):
        logits = {j: float(anchor @ z[j]) / temperature for j in range(len(z)) if j != i}
        positives = [j for j in logits if labels[j] == labels[i] and labels[i] >= 0]
        if not positives:
            losses.append(0.0)
            continue
        everything = log_sum_exp(list(logits.values()))
        losses.append(sum(everything - logits[j] for j in positives) / len(positives))
    return np.array(losses)


def nt_xent(z, labels, *, temperature):
    losses = []
    for i, anchor in enumerate(z):
        logits = {j: float(anchor @ z[j]) / temperature for j in range(len(z)) if j != i}
        positives = [j for j in logits if labels[j] == labels[i] and labels[i] >= 0]
        negatives = [logits[j] for j in logits if j not in positives]
        each = [log_sum_exp([logits[j], *negatives]) - logits[j] for j in positives]
        losses.append(sum(each) / len(each) if each else 0.0)
    return np.array(losses)


def vicreg(first, second, *, eps, weights=(25.0, 25.0, 1.0)):
    """The three weighted terms; the first per example."""
    count, dim = first.shape
    invariance = [sum((a - b) ** 2) / dim for a, b in zip(first, second, strict=True)]
    variance = covariance = 0.0
    for x in (first, second):
        centered = x - x.mean(axis=0)
        for d in range(dim):
            spread = math.sqrt(float(centered[:, d] @ centered[:, d]) / (count - 1) + eps)
            variance += max(0.0, 1 - spread) / dim / 2
            for e in range(dim):
                if d != e:
                    entry = float(centered[:, d] @ centered[:, e]) / (count - 1)
                    covariance += entry**2 / dim
    return weights[0] * np.array(invariance), weights[1] * variance, weights[2] * covariance


def negative_prototype_by_definition(
    embeddings,
    prototypes,
    labels,
    mix,
    *,
    temperature,
    normalize_mixed=False,
    where=None,
    class_where=None,
):
    """Eq. 6 in JAX as the paper writes it: every mixed negative of Eq. 5 made as a vector."""
    valid = jnp.broadcast_to(True if where is None else where, labels.shape)
    present = jnp.broadcast_to(True if class_where is None else class_where, mix.shape)

    def one(z, label, mix, valid, present):
        others = present & (jnp.arange(len(prototypes)) != label)
        mixed = mix_negatives(z, prototypes, mix, normalize_mixed)
        scores = jnp.concatenate([prototypes @ z, mixed @ z]) / temperature
        counted = jnp.concatenate([present, others])
        loss = jax.nn.logsumexp(scores, where=counted) - scores[label]
        return jnp.where(valid & present[label], loss, 0)

    return jax.vmap(one)(embeddings, labels, mix, valid, present)
