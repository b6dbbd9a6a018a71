"""The loss terms of each method, written out from its paper in plain loops and sums, independent of the package.

Each function takes the inputs of a step and the method's settings, with the same defaults, and returns the
expected terms. ``f`` are the networks by role, ``u`` the views of the unlabelled streams, ``x`` and ``y`` the labelled
patches and labels, ``pseudo`` the pseudo-labelled ones, ``t`` the completed fraction of the run, and ``draw`` the
step's generator.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

#: Settings tested per method: its defaults, except thresholds that tiny networks never reach, and others.
SETTINGS = {
    "bcp": [{}, {"unlabelled_weight": 0.3, "box": 0.5}],
    "cross_pseudo": [
        {},
        {"unlabelled_weight": 0.3, "num_boxes": 2},
        {"decay": 0.9, "ramp": 0.8},
        {"strong": True, "decay": 0.5},
    ],
    "cross_teaching": [{}, {"unlabelled_weight": 0.3, "ramp": 0.2}],
    "dhc": [{}, {"unlabelled_weight": 0.3, "ramp": 0.2, "decay": 0.9, "window": 20}],
    "entropy_minimisation": [{}, {"entropy_weight": 0.3, "ramp": 0.2}],
    "fixmatch": [
        {"threshold": 0.4},
        {"threshold": 0.5, "unlabelled_weight": 0.7, "cut_mix_probability": 1.0},
        {"threshold": 0.4, "cut_mix_probability": 0},
    ],
    "mean_teacher": [{}, {"consistency_weight": 3, "ramp": 0.2}],
    "pseudo_label": [{}, {"unlabelled_weight": 0.3, "decay": 0.9}],
    "supervised": [{}, {"decay": 0.9}],
    "ua_mt": [{"passes": 3}, {"passes": 4, "noise": 0.2, "consistency_weight": 3, "ramp": 0.2}],
    "unimatch": [
        {"threshold": 0.4},
        {"threshold": 0.5, "unlabelled_weight": 0.7, "dropout": 0.3, "cut_mix_probability": 1},
    ],
}


def cross_entropy(p, labels, weights=None):
    """−Σ w·log p[label] / Σ w over the voxels of probabilities (B, C, z, y, x)."""
    by_voxel = -p.gather(1, labels[:, None])[:, 0].log()
    return by_voxel.mean() if weights is None else (by_voxel * weights).sum() / weights.sum()


def risen(t, length):
    return math.exp(-5 * (1 - min(t / length, 1)) ** 2)


def supervised(s, decay=0):
    return {"a": {"labelled": cross_entropy(s.p("a", s.x), s.y)}}


def cross_pseudo(s, unlabelled_weight=0.8, num_boxes=3, decay=0, ramp=0, strong=False):
    from dlunet.methods import draw_masks  # the distribution of the boxes has its own tests

    i, j = s.u["unlabelled_i"]["weak"], s.u["unlabelled_j"]["weak"]
    h = draw_masks(len(i), i.shape[2:], num_boxes, s.draw)
    shown = [s.u[name]["strong" if strong else "weak"] for name in ("unlabelled_j", "unlabelled_i")]
    mixed = torch.where(h[:, None], *shown)
    unlabelled_weight *= risen(s.t, ramp) if ramp else 1
    terms = {}
    for role, other in ("ab", "ba"):
        teacher = f"average_{other}" if decay else other
        taught = torch.where(h, s.p(teacher, j).argmax(1), s.p(teacher, i).argmax(1))
        unlabelled = unlabelled_weight * cross_entropy(s.p(role, mixed), taught)
        terms[role] = {"labelled": cross_entropy(s.p(role, s.x), s.y), "unlabelled": unlabelled}
    return terms


def cross_teaching(s, unlabelled_weight=0.1, ramp=1.0):
    x, weight, terms = s.u["unlabelled"]["weak"], unlabelled_weight * risen(s.t, ramp), {}
    for role, other in ("ab", "ba"):
        unlabelled = weight * cross_entropy(s.p(role, x), s.p(other, x).argmax(1))
        terms[role] = {"labelled": cross_entropy(s.p(role, s.x), s.y), "unlabelled": unlabelled}
    return terms


def pseudo_label(s, unlabelled_weight=1.0, decay=0):
    stored = unlabelled_weight * cross_entropy(s.p("a", s.pseudo["weak"]), s.pseudo["label"])
    return {"a": {"labelled": cross_entropy(s.p("a", s.x), s.y), "pseudo_labelled": stored}}


def mean_teacher(s, consistency_weight=0.1, ramp=1.0):
    views = s.u["unlabelled"]
    difference = (s.p("student", views["strong"]) - s.p("teacher", views["weak"])) ** 2
    consistency = consistency_weight * risen(s.t, ramp) * difference.mean()
    return {"student": {"labelled": cross_entropy(s.p("student", s.x), s.y), "consistency": consistency}}


def ua_mt(s, passes=8, noise=0.1, consistency_weight=0.1, ramp=1.0):
    views = s.u["unlabelled"]
    difference = ((s.p("student", views["strong"]) - s.p("teacher", views["weak"])) ** 2).mean(1)
    drawn = [torch.randn(views["weak"].shape, generator=s.draw) for _ in range(passes)]
    mu = sum(s.p("teacher", views["weak"] + noise * eta.clamp(-2, 2)) for eta in drawn) / passes
    certain = -(mu * mu.log()).sum(1) < (0.75 + 0.25 * risen(s.t, ramp)) * math.log(mu.shape[1])
    assert certain.any() and not certain.all()
    consistency = consistency_weight * risen(s.t, ramp) * difference[certain].mean()
    return {"student": {"labelled": cross_entropy(s.p("student", s.x), s.y), "consistency": consistency}}


def fixmatch(s, threshold=0.95, unlabelled_weight=1.0, cut_mix_probability=0.5):
    unlabelled = unlabelled_weight * _on_strong(s, "strong", threshold, cut_mix_probability)
    return {"a": {"labelled": cross_entropy(s.p("a", s.x), s.y), "unlabelled": unlabelled}}


def unimatch(s, threshold=0.95, unlabelled_weight=1.0, cut_mix_probability=0.5, dropout=0.5):
    views, network = s.u["unlabelled"], s.f["a"]
    weak = s.p("a", views["weak"])
    features = network.encode(views["weak"])
    kept = [torch.rand((*level.shape[:2], 1, 1, 1), generator=s.draw) >= dropout for level in features]
    dropped = [level * keep / (1 - dropout) for level, keep in zip(features, kept, strict=True)]
    perturbed = network.decode(dropped).softmax(1)
    strong = sum(_on_strong(s, view, threshold, cut_mix_probability) for view in ("strong_1", "strong_2"))
    terms = {
        "features": unlabelled_weight / 2 * _sure(weak, perturbed, threshold),
        "strong": unlabelled_weight / 4 * strong,
    }
    return {"a": {"labelled": cross_entropy(s.p("a", s.x), s.y), **terms}}


def _on_strong(s, view, threshold, probability):
    """The strong view with one box of another patch in some samples; the weak views' probabilities are mixed alike."""
    from dlunet.methods.cutmix import draw_box  # the distribution of the boxes has its own tests

    i, j = s.u["unlabelled"], s.u.get("unlabelled_j")
    mixed, weak = i[view].clone(), s.p("a", i["weak"]).clone()
    for sample in range(len(mixed)):
        if probability == 1 or torch.rand((), generator=s.draw).item() < probability:
            box = draw_box(mixed.shape[2:], 1, s.draw)
            mixed[sample, 0][box] = j[view][sample, 0][box]
            weak[sample][(slice(None), *box)] = s.p("a", j["weak"])[sample][(slice(None), *box)]
    return _sure(weak, s.p("a", mixed), threshold)


def _sure(weak, other, threshold):
    q, labels = weak.max(1)
    sure = q >= threshold
    assert sure.any() and not sure.all()
    return (-other.gather(1, labels[:, None])[:, 0].log() * sure).mean()


def entropy_minimisation(s, entropy_weight=0.1, ramp=1.0):
    p = s.p("a", s.u["unlabelled"]["weak"])
    entropy = -(p * p.log()).sum(1).mean() / math.log(p.shape[1])
    weighted = entropy_weight * risen(s.t, ramp) * entropy
    return {"a": {"labelled": cross_entropy(s.p("a", s.x), s.y), "entropy": weighted}}


def bcp(s, unlabelled_weight=0.5, box=2 / 3):
    second, p, q = s.second, s.u["unlabelled_p"]["weak"], s.u["unlabelled_q"]["weak"]
    inside = torch.zeros(len(p), *p.shape[2:])
    for sample in range(len(p)):
        edges = [round(size * box) for size in p.shape[2:]]
        ends = zip(p.shape[2:], edges, strict=True)
        z, y, x = (int(torch.randint(0, size - edge + 1, (), generator=s.draw)) for size, edge in ends)
        inside[sample, z : z + edges[0], y : y + edges[1], x : x + edges[2]] = 1
    m, outside = inside[:, None], 1 - inside
    seen_in = s.p("student", second["weak"] * m + p * (1 - m))
    seen_out = s.p("student", q * m + s.x * (1 - m))
    label_in = (second["label"] * inside + s.p("teacher", p).argmax(1) * outside).long()
    label_out = (s.p("teacher", q).argmax(1) * inside + s.y * outside).long()
    labelled = cross_entropy(seen_in, label_in, inside) + cross_entropy(seen_out, label_out, outside)
    unlabelled = cross_entropy(seen_in, label_in, outside) + cross_entropy(seen_out, label_out, inside)
    return {"student": {"labelled": labelled, "unlabelled": unlabelled_weight * unlabelled}}


def dhc(s, unlabelled_weight=0.1, ramp=1.0, decay=0.99, window=50):
    x, both = s.u["unlabelled"]["weak"], torch.cat([s.x, s.u["unlabelled"]["weak"]])
    pseudo = {role: s.p(role, both).argmax(1) for role in "ab"}
    classes = s.p("a", x).shape[1]
    of_labels, of_pseudo = (_rarity(labels, classes) for labels in (s.y, s.p("b", x).argmax(1)))
    rare = [classes * (decay * old + (1 - decay) * new) for old, new in zip(of_labels, of_pseudo, strict=True)]
    hard = []
    for k in range(classes):
        found, true = s.p("a", s.x).argmax(1) == k, s.y == k
        assert true.any()
        dice = 2 * int((found & true).sum()) / (int(found.sum()) + int(true.sum()))
        learnt = dice * math.log((dice + 1e-8) / 2e-8) / window  # starting from a Dice of 0
        missed = 1 + (1 - dice - 1) / window
        hard.append(missed * (1e-8 / (learnt + 1e-8)) ** 0.2)
    hard = [classes * value / max(hard) for value in hard]
    terms = {}
    for role, other, weights in (("a", "b", hard), ("b", "a", rare)):
        of = torch.tensor(weights, dtype=torch.float64)
        taught = cross_entropy(s.p(role, both), pseudo[other], of[pseudo[other]])
        labelled = cross_entropy(s.p(role, s.x), s.y, of[s.y])
        terms[role] = {"labelled": labelled, "unlabelled": unlabelled_weight * risen(s.t, ramp) * taught}
    return terms


def _rarity(labels, classes):
    counts = [int((labels == k).sum()) for k in range(classes)]
    raw = [math.log((max(counts) + 1e-8) / (count + 1e-8)) for count in counts]
    return [value / max(raw) for value in raw]


EQUATIONS = {
    function.__name__: function
    for function in (
        bcp, cross_pseudo, cross_teaching, dhc, entropy_minimisation, fixmatch, mean_teacher, pseudo_label, supervised,
        ua_mt, unimatch,
    )
}  # fmt: skip


def expected_terms(name, settings, step, seed):
    """The expected terms of a method in a step whose generator is seeded with ``seed``."""
    batch = step.batch
    inputs = SimpleNamespace(
        f=step.networks,
        p=lambda role, x: F.softmax(step.networks[role](x), 1),
        x=batch["labelled"]["weak"],
        y=batch["labelled"]["label"],
        second=batch.get("labelled_j"),
        pseudo=batch.get("pseudo_labelled"),
        u={name: views for name, views in batch.items() if "unlabelled" in name},
        t=step.progress.fraction,
        draw=torch.Generator().manual_seed(seed),
    )
    return EQUATIONS[name](inputs, **settings)
