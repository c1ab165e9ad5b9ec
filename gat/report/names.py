"""How models, attacks, layer groups and metrics are called in print, and what each attack is.

Nothing here is a list of what may exist: unknown names are printed as they are.
"""

from collections.abc import Iterable

from gat.evaluation.records import CONTROLS, budget, control, controlled
from gat.report.statistics import BASELINE, Column

MODELS = {
    BASELINE: "Original",
    "gat": "GAT-trained",
    "clean": "Clean-trained",
    "random_latents": "Trained on random samples",
    "random-latents": "Trained on random samples",
    "pgd": "PGD-trained",
    "at-pgd": "PGD-trained",
}

_ATTACK_WORDS = {
    "none": "Clean",
    "gat": "GAT",
    "pgd": "PGD",
    "fgsm": "FGSM",
    "cw": "C&W",
    "deepfool": "DeepFool",
    "spatial": "Spatial",
    "recolor": "Recolor",
    "perceptual": "Perceptual",
    "random": "Random",
    "linf": "L∞",
    "l2": "L2",
    "l1": "L1",
    "noise": "noise only",
    "free": "no budget",
    "least_likely": "least likely class",
    "style": "style only",
    "coarse": "coarse layers",
    "middle": "middle layers",
    "fine": "fine layers",
    "targeted": "targeted",
    "apgd": "APGD",
    "autoattack": "AutoAttack",
    "fab": "FAB",
    "square": "Square",
    "lpa": "LPA",
    "ppgd": "PPGD",
    "self": "(own features)",
    "jpeg": "JPEG",
    "elastic": "Elastic",
    "fog": "Fog",
    "snow": "Snow",
    "gabor": "Gabor",
    "segpgd": "SegPGD",
    "cospgd": "CosPGD",
    "gamma": "gamma only",
    "beta": "beta only",
}

_CONTROL_WORDS = {
    "start": "its start",
    "random": "random control",
    "long": "more steps",
    "unbounded": "without a bound",
    "blackbox": "black box",
    "transfer": "transferred",
}

_AGGREGATES = {
    "mean_unseen": "Mean over unseen attacks",
    "union": "All at once",
    "worst": "Worst attack",
}

GROUPS = {
    "coarse": "Coarse layers",
    "middle": "Middle layers",
    "fine": "Fine layers",
    "all": "All layers",
    "": "All layers",
}

PANELS = {"noise": "Noise-based", "style": "Style-based", "both": "Style and noise", "pixels": "Pixels"}

_METRICS = {
    "loss": "all",
    "lr": "learning rate",
    "images_per_sec": "images",
}

_DEFINITIONS = {
    "none": "No attack: the accuracy on the starting images. ‘Real’ are images of the test split, ‘generated’ are untouched "
    "samples of the generator.",
    "gat": "Latent ascent of generative adversarial training: the generator's per-layer style and noise tensors are moved by "
    "signed gradient steps that raise the classifier's loss, and an example is left alone as soon as it fools the classifier. "
    "The picture is not held close to the starting one in pixels, hence the independent oracle. Poursaeed et al., Eqs. 1–4.",
    "pgd": "Projected gradient descent on the pixels of real images, within the stated distance of the starting image. "
    "Madry et al., 2018.",
    "fgsm": "One signed gradient step on the pixels of real images. Goodfellow et al., 2015.",
    "cw": "The smallest L2 change of the pixels that fools the classifier, by a penalty method. Carlini and Wagner, 2017.",
    "deepfool": "Repeated steps to the nearest decision boundary of the linearised classifier. Moosavi-Dezfooli et al., 2016.",
    "spatial": "A smooth flow field that moves pixels instead of recolouring them. Xiao et al., 2018.",
    "recolor": "One smooth change of colours for the whole image. Laidlaw and Feizi, 2019.",
    "perceptual": "Any change of the pixels within a bound on a perceptual distance. Laidlaw et al., 2021.",
    "lpa": "Any change of the pixels within a bound on a perceptual distance, by a Lagrangian. Laidlaw et al., 2021.",
    "ppgd": "Any change of the pixels within a bound on a perceptual distance, by projected gradient descent. Laidlaw et al., 2021.",
    "apgd": "PGD that halves its step size when progress stalls and restarts from the best iterate. Croce and Hein, 2020.",
    "autoattack": "APGD with two losses, FAB and Square in turn; an example counts as broken if any of them breaks it. "
    "Croce and Hein, 2020.",
    "fab": "The smallest change that reaches the nearest boundary of the linearised classifier, kept near the image. "
    "Croce and Hein, 2020.",
    "square": "Random squares of pixels, kept where they raise the loss; no gradient is used. Andriushchenko et al., 2020.",
    "jpeg": "A bounded change of the image's JPEG coefficients. Kang et al., 2019.",
    "elastic": "A smooth flow within a bound. Kang et al., 2019.",
    "fog": "A cloud of fractal fog whose random numbers are optimised. Kang et al., 2019.",
    "snow": "Flakes of snow whose places and strengths are optimised. Kang et al., 2019.",
    "gabor": "Gabor noise whose parameters are optimised. Kang et al., 2019.",
    "segpgd": "PGD that first weighs the pixels still answered right more, later the wrong ones. Gu et al., 2022.",
    "cospgd": "PGD that weighs each pixel by how well its answer agrees with its label. Agnihotri et al., 2024.",
}

_SCENE_DEFINITIONS = {
    "none": "No attack: the answers to the starting images. ‘Real’ are images of the test split, ‘generated’ are untouched "
    "renderings of its layouts.",
    "gat": "Latent ascent of generative adversarial training: the gamma and beta that a SPADE generator modulates its layers with "
    "are moved by signed gradient steps that raise the model's loss, while the layout that says what is where stays as it is. The "
    "picture is not held close to the starting one in pixels, hence the independent oracle. Poursaeed et al., Sec. 3.2.",
}

_VARIANTS = {
    "noise": "Only noise inputs are moved.",
    "style": "Only styles are moved.",
    "gamma": "Only the factors gamma are moved.",
    "beta": "Only the offsets beta are moved.",
    "coarse": "Only the coarse layers (lowest resolutions) are moved.",
    "middle": "Only the middle layers are moved.",
    "fine": "Only the fine layers (highest resolutions) are moved.",
    "targeted": "The aim is one given class, not just any wrong one.",
    "least_likely": "The aim is the answer that the model finds least likely at the start.",
    "linf": "The distance is the largest change of any pixel value; values lie in [0, 1].",
    "l2": "The distance is Euclidean over all pixel values; values lie in [0, 1].",
    "l1": "The distance is the sum of all changes of pixel values; values lie in [0, 1].",
    "self": "The distance is measured with the attacked model's own features.",
}


def model_name(model: str) -> str:
    """For example 'GAT-trained' for 'gat'; unknown names as they are."""
    return MODELS.get(model, model)


def attack_name(attack: str) -> str:
    """For example 'GAT, style only, coarse layers' for 'gat-style-coarse', 'PGD L∞ 8/255' for 'pgd-linf-8/255', 'Fog, random
    control' for 'fog-random', 'PGD L∞ ×0.5' for 'pgd-linf@0.5' and 'Mean over unseen attacks' for 'mean_unseen'."""
    if attack in _AGGREGATES:
        return _AGGREGATES[attack]
    base, factor = budget(attack)
    if base != attack:
        return f"{attack_name(base)} ×{factor:g}"
    if kind := control(attack):
        return f"{attack_name(controlled(attack))}, {_CONTROL_WORDS[kind]}"
    family, *parts = (_ATTACK_WORDS.get(word, word) for word in attack.split("-"))
    if not parts:
        return family
    if attack.startswith("gat-"):
        return ", ".join((family, *parts))
    return " ".join((family, *parts))


def column_name(column: Column, among: Iterable[Column]) -> str:
    """The attack's name, with the source where the same attack ran on more than one."""
    sources = {other.source for other in among if other.attack == column.attack}
    name = attack_name(column.attack)
    return f"{name}, {column.source}" if len(sources) > 1 else name


def definition(attack: str, scenes: bool = False) -> str | None:
    """What attacks of this family do, to classifiers or to models of scenes, in a few sentences; None for an unknown one."""
    known = _DEFINITIONS | _SCENE_DEFINITIONS if scenes else _DEFINITIONS
    return known.get(attack.split("-")[0])


def variant(attack: str) -> str:
    """What narrows this attack down within its family, in short sentences; '' if nothing known does."""
    if kind := control(attack):
        return f"A control: {CONTROLS[kind]}."
    _, *words = attack.split("-")
    return " ".join(_VARIANTS[word] for word in words if word in _VARIANTS)


def group_name(group: str) -> str:
    """Of layers: 'Coarse layers'; of pictures of one attack: its name."""
    return GROUPS.get(group) or attack_name(group)


def panel_name(kind: str) -> str:
    """Of a picture in the gallery: 'Noise-based', or the attack's name."""
    return PANELS.get(kind) or attack_name(kind)


def metric_name(metric: str) -> str:
    """Of a training curve: 'loss_adversarial' becomes 'adversarial' (its chart is called Loss)."""
    if metric in _METRICS:
        return _METRICS[metric]
    words = metric.replace("/", " ").replace("_per_sec", "").replace("_", " ").split()
    return " ".join(word for word in words if word != "loss") or metric


def class_name(label: int | None, classes: tuple[str, ...]) -> str:
    """The class's name, 'class 3' if names are not known, '–' for None."""
    if label is None:
        return "–"
    return classes[label] if 0 <= label < len(classes) else f"class {label}"
