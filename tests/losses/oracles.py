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


def cross_entropy(logits, label):
    """Of one example; ``logits`` by class."""
    return log_sum_exp(list(logits.values())) - logits[label]


def sub_center_arcface(z, prototypes, labels, present, *, margin, scale):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        nearest = {c: max(prototypes[c], key=lambda w, a=anchor: float(a @ w)) for c in present}
        losses += list(arcface([anchor], nearest, [label], present, margin=margin, scale=scale))
    return np.array(losses)


def sphereface(z, prototypes, labels, present, *, margin, scale):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        length = math.sqrt(float(anchor @ anchor))
        logits = {c: scale * float(anchor @ prototypes[c]) for c in present}
        angle = margin * math.acos(logits[label] / scale / length)
        turns = math.floor(angle / math.pi)
        logits[label] = scale * length * ((-1) ** turns * math.cos(angle) - 2 * turns)
        losses.append(cross_entropy(logits, label))
    return np.array(losses)


def magface(z, prototypes, labels, present, *, scale, length_weight):
    """With lengths from 1 to 4 and margins from 0.2 to 0.6."""
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        length = min(max(math.sqrt(float(anchor @ anchor)), 1.0), 4.0)
        margin = 0.2 + (length - 1) / 3 * 0.4
        loss = arcface([unit(anchor)], prototypes, [label], present, margin=margin, scale=scale)
        losses.append(loss[0] + length_weight * (length / 16 + 1 / length))
    return np.array(losses)


def logit_adjusted(z, prototypes, labels, present, counts, *, temperature, adjustment):
    prior = np.maximum(counts, 1) / sum(np.maximum(counts, 1))
    bias = adjustment * np.log(prior)
    return softmax(z, prototypes, labels, present, bias, temperature=temperature)


def focal(z, prototypes, labels, present, bias, *, temperature, focus):
    losses = softmax(z, prototypes, labels, present, bias, temperature=temperature)
    return np.array([(1 - math.exp(-loss)) ** focus * loss for loss in losses])


def soft_triple(z, prototypes, labels, present, *, temperature, margin, scale):
    losses = []
    for anchor, label in zip(z, labels, strict=True):
        logits = {}
        for c in present:
            scores = [float(anchor @ w) for w in prototypes[c]]
            weights = [math.exp(x / temperature) for x in scores]
            similar = sum(w * x for w, x in zip(weights, scores, strict=True)) / sum(weights)
            logits[c] = scale * (similar - (margin if c == label else 0))
        losses.append(cross_entropy(logits, label))
    return np.array(losses)


def angular_prototypical(z, prototypes, labels, present, *, scale):
    return prototypical(z, prototypes, labels, present, temperature=1 / scale)


def proxy_anchor(z, prototypes, labels, *, margin, scale):
    """The paper's loss of the batch."""
    pulled, pushed, anchored = 0.0, 0.0, 0
    for c, w in enumerate(prototypes):
        cosines = z @ w
        own = [math.exp(-scale * (x - margin)) for x in cosines[labels == c]]
        others = [math.exp(scale * (x + margin)) for x in cosines[labels != c]]
        anchored += bool(own)
        pulled += math.log(1 + sum(own))
        pushed += math.log(1 + sum(others))
    return pulled / anchored + pushed / len(prototypes)


def by_anchor(equation):
    """A loss of pairs from one anchor's products with its positives and with its negatives."""

    def loss(z, labels, **hyper):
        losses = []
        for i, anchor in enumerate(z):
            positive, negative = [], []
            for j, other in enumerate(z):
                if j != i:
                    same = labels[i] == labels[j] >= 0
                    (positive if same else negative).append(float(anchor @ other))
            losses.append(equation(positive, negative, **hyper) if positive else 0.0)
        return np.array(losses)

    return loss


@by_anchor
def multi_similarity(positive, negative, *, alpha, beta, base):
    pull = math.log(1 + sum(math.exp(-alpha * (x - base)) for x in positive)) / alpha
    return pull + math.log(1 + sum(math.exp(beta * (x - base)) for x in negative)) / beta


@by_anchor
def circle(positive, negative, *, margin, scale):
    pull = sum(math.exp(scale * max(1 + margin - x, 0) * (1 - margin - x)) for x in positive)
    push = sum(math.exp(scale * max(x + margin, 0) * (x - margin)) for x in negative)
    return math.log(1 + pull * push)


@by_anchor
def triplet(positive, negative, *, margin):
    each = [
        max(0.0, margin + math.sqrt(2 - 2 * p) - math.sqrt(2 - 2 * n))
        for p in positive
        for n in negative
    ]
    return sum(each) / max(len(each), 1)


@by_anchor
def triplet_hard(positive, negative, *, margin):
    if not negative:
        return 0.0
    return max(0.0, margin + math.sqrt(2 - 2 * min(positive)) - math.sqrt(2 - 2 * max(negative)))


def n_pair(z, positives):
    scores = z @ np.asarray(positives).T
    return np.array([log_sum_exp(list(row)) - row[i] for i, row in enumerate(scores)])


def barlow_twins(first, second, *, off_diagonal):
    total = 0.0
    for d in range(first.shape[1]):
        for e in range(first.shape[1]):
            a, b = first[:, d] - first[:, d].mean(), second[:, e] - second[:, e].mean()
            spread = math.sqrt((a @ a / len(a) + 1e-5) * (b @ b / len(b) + 1e-5))
            c = float(a @ b) / len(a) / spread
            total += (1 - c) ** 2 if d == e else off_diagonal * c**2
    return total


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
