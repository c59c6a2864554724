"""The losses again, from their papers, in slow float64 NumPy: loops, no masks, no tricks.

Every function takes one batch and returns one number per example. Classes that do not count are
left out of ``present``; examples that do not count are taken away by the caller.
"""

import functools
import math

import numpy as np


def log_sum_exp(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def cross_entropy(logits, label):
    """Of one example; ``logits`` by class."""
    return log_sum_exp(list(logits.values())) - logits[label]


def unit(x):
    return x / math.sqrt(float(x @ x))


def by_example(equation):
    """A loss from its equation for one example, its label, prototypes and classes present."""

    @functools.wraps(equation)
    def loss(z, prototypes, labels, present, *more, **hyper):
        losses = []
        for i, (anchor, label) in enumerate(zip(z, labels, strict=True)):
            # What is more is of every class, or of every pair of example and class.
            own = (x[i] if np.ndim(x) > 1 else x for x in more)
            losses.append(equation(anchor, label, prototypes, present, *own, **hyper))
        return np.array(losses)

    return loss


@by_example
def prototypical(anchor, label, prototypes, present, *, temperature):
    return cross_entropy({c: float(anchor @ prototypes[c]) / temperature for c in present}, label)


@by_example
def multi_prototype(anchor, label, prototypes, present, *, temperature):
    logits = {c: [float(anchor @ p) / temperature for p in prototypes[c]] for c in present}
    everything = log_sum_exp([x for row in logits.values() for x in row])
    return sum(everything - x for x in logits[label]) / len(logits[label])


@by_example
def negative_prototype(anchor, label, prototypes, present, mix, *, temperature, normalize=False):
    logits = [float(anchor @ prototypes[c]) / temperature for c in present]
    for c in present:
        if c != label:
            mixed = mix[c] * anchor + (1 - mix[c]) * prototypes[c]
            mixed = unit(mixed) if normalize else mixed
            logits.append(float(anchor @ mixed) / temperature)
    return log_sum_exp(logits) - float(anchor @ prototypes[label]) / temperature


@by_example
def multi_negative_prototype(anchor, label, prototypes, present, mix, *, temperature):
    logits = []
    for c in present:
        for m, p in enumerate(prototypes[c]):
            logits.append(float(anchor @ p) / temperature)
            if c != label:
                mixed = mix[c, m] * anchor + (1 - mix[c, m]) * p
                logits.append(float(anchor @ mixed) / temperature)
    own = [float(anchor @ p) / temperature for p in prototypes[label]]
    return log_sum_exp(logits) - sum(own) / len(own)


def angular_prototypical(*arguments, scale):
    return prototypical(*arguments, temperature=1 / scale)


@by_example
def prototypical_network(anchor, label, prototypes, present, *, temperature):
    return cross_entropy(
        {c: -float(np.sum((anchor - prototypes[c]) ** 2)) / temperature for c in present}, label
    )


@by_example
def center(anchor, label, prototypes, present):
    return np.sum((anchor - prototypes[label]) ** 2) / 2


@by_example
def proxy_softmax(anchor, label, prototypes, present, bias, *, temperature):
    return cross_entropy(
        {c: float(anchor @ prototypes[c]) / temperature + bias[c] for c in present}, label
    )


def logit_adjusted(z, prototypes, labels, present, counts, *, temperature, adjustment):
    prior = np.maximum(counts, 1) / sum(np.maximum(counts, 1))
    bias = adjustment * np.log(prior)
    return proxy_softmax(z, prototypes, labels, present, bias, temperature=temperature)


def focal(*arguments, temperature, focus):
    losses = proxy_softmax(*arguments, temperature=temperature)
    return np.array([(1 - math.exp(-loss)) ** focus * loss for loss in losses])


@by_example
def soft_triple(anchor, label, prototypes, present, *, temperature, margin, scale):
    logits = {}
    for c in present:
        scores = [float(anchor @ w) for w in prototypes[c]]
        weights = [math.exp(x / temperature) for x in scores]
        similar = sum(w * x for w, x in zip(weights, scores, strict=True)) / sum(weights)
        logits[c] = scale * (similar - (margin if c == label else 0))
    return cross_entropy(logits, label)


@by_example
def arcface(anchor, label, prototypes, present, *, margin, scale):
    logits = {}
    for c in present:
        angle = math.acos(max(-1.0, min(1.0, float(anchor @ prototypes[c]))))
        cosine = math.cos(angle)
        if c == label:
            beyond = angle + margin > math.pi
            cosine = cosine - margin * math.sin(margin) if beyond else math.cos(angle + margin)
        logits[c] = scale * cosine
    return cross_entropy(logits, label)


@by_example
def sub_center_arcface(anchor, label, prototypes, present, *, margin, scale):
    nearest = {c: max(prototypes[c], key=lambda w: float(anchor @ w)) for c in present}
    return arcface([anchor], nearest, [label], present, margin=margin, scale=scale)[0]


@by_example
def cosface(anchor, label, prototypes, present, *, margin, scale):
    logits = {c: scale * float(anchor @ prototypes[c]) for c in present}
    logits[label] -= scale * margin
    return cross_entropy(logits, label)


@by_example
def sphereface(anchor, label, prototypes, present, *, margin, scale):
    length = math.sqrt(float(anchor @ anchor))
    logits = {c: scale * float(anchor @ prototypes[c]) for c in present}
    angle = margin * math.acos(logits[label] / scale / length)
    turns = math.floor(angle / math.pi)
    logits[label] = scale * length * ((-1) ** turns * math.cos(angle) - 2 * turns)
    return cross_entropy(logits, label)


@by_example
def magface(anchor, label, prototypes, present, *, scale, length_weight):
    """With lengths from 1 to 4 and margins from 0.2 to 0.6."""
    length = min(max(math.sqrt(float(anchor @ anchor)), 1.0), 4.0)
    margin = 0.2 + (length - 1) / 3 * 0.4
    loss = arcface([unit(anchor)], prototypes, [label], present, margin=margin, scale=scale)
    return loss[0] + length_weight * (length / 16 + 1 / length)


def adaptive_scale(sums, angles):
    angle = min(math.pi / 4, float(np.median(angles)))
    return max(1.0, math.log(sum(sums) / len(sums)) / math.cos(angle))


def adacos_scale(cosines, labels, scale):
    """From a list of {class: cosine}, one per example."""
    sums, angles = [], []
    for row, label in zip(cosines, labels, strict=True):
        sums.append(sum(math.exp(scale * x) for c, x in row.items() if c != label))
        angles.append(math.acos(max(-1.0, min(1.0, row[label]))))
    return adaptive_scale(sums, angles)


def of_cosines(cosines, labels, scale):
    scale = adacos_scale(cosines, labels, scale)
    scaled = [{c: scale * x for c, x in row.items()} for row in cosines]
    return np.array([cross_entropy(*pair) for pair in zip(scaled, labels, strict=True)])


def adacos(z, prototypes, labels, present, *, scale):
    cosines = [{c: float(anchor @ prototypes[c]) for c in present} for anchor in z]
    return of_cosines(cosines, labels, scale)


def adaproj(z, bases, labels, present, *, scale):
    projected = [{c: sum(float(a @ w) * w for w in bases[c]) for c in present} for a in z]
    cosines = [
        {c: float(a @ unit(q)) for c, q in row.items()} for a, row in zip(z, projected, strict=True)
    ]
    return of_cosines(cosines, labels, scale)


def sub_cluster_adacos(z, prototypes, labels, present, *, scale):
    rows = [{c: [float(anchor @ p) for p in prototypes[c]] for c in present} for anchor in z]
    sums = [sum(math.exp(scale * x) for several in row.values() for x in several) for row in rows]
    angles = [min(map(math.acos, row[label])) for row, label in zip(rows, labels, strict=True)]
    scale = adaptive_scale(sums, angles)
    classes = [
        {c: log_sum_exp([scale * x for x in several]) for c, several in row.items()} for row in rows
    ]
    return np.array([cross_entropy(*pair) for pair in zip(classes, labels, strict=True)])


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
def supervised_contrastive(positive, negative, *, temperature):
    logits = [x / temperature for x in positive + negative]
    return log_sum_exp(logits) - sum(positive) / temperature / len(positive)


@by_anchor
def nt_xent(positive, negative, *, temperature):
    logits, others = ([x / temperature for x in scores] for scores in (positive, negative))
    return sum(log_sum_exp([x, *others]) - x for x in logits) / len(logits)


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


def vicreg(first, second, labels, *, eps):
    """The three weighted terms together."""
    count, dim = first.shape
    invariance = np.array([sum((a - b) ** 2) / dim for a, b in zip(first, second, strict=True)])
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
    return 25 * invariance + 25 * variance + covariance


def barlow_twins(first, second, labels, *, off_diagonal):
    total = 0.0
    for d in range(first.shape[1]):
        for e in range(first.shape[1]):
            a, b = first[:, d] - first[:, d].mean(), second[:, e] - second[:, e].mean()
            spread = math.sqrt((a @ a / len(a) + 1e-5) * (b @ b / len(b) + 1e-5))
            c = float(a @ b) / len(a) / spread
            total += (1 - c) ** 2 if d == e else off_diagonal * c**2
    return total
