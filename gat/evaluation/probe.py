"""Questions to a model itself, whose answers tell how far an attack's numbers can be believed."""

import torch
from torch import Tensor, nn

from gat.attacks.frozen import frozen
from gat.latents import Images
from gat.protocols import Task

NUM_PROBED = 64
"""Images to ask with."""

_SAME = 1e-3  # relative: far above what the order of additions changes, far below what randomness does


def probe(task: Task, model: nn.Module, images: Images, labels: Tensor) -> dict[str, float]:
    """Shares of these images on which the model does what makes attacks look weak. The model and the global random state are
    left as found.

    Returns:
        'random_outputs': two passes over the same image differ;
        'probabilities': outputs are not negative and sum to 1, as after a softmax that should not be there;
        'zero_gradients': the loss has no gradient, or not a finite one, with respect to the image.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), frozen(model):
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            outputs = model(leaf)
            loss = task.loss(outputs, labels)
            gradient = None
            if loss.requires_grad:
                # The sum keeps examples apart: each image only reaches its own term.
                (gradient,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
        with torch.no_grad():
            again = model(images)
            if not isinstance(outputs, Tensor):  # only the task can read them: let its loss stand for them
                outputs, again = (task.loss(some, labels)[:, None] for some in (outputs, again))
            outputs = outputs.detach().float()
            change = (again.float() - outputs).flatten(1).abs().amax(1)
    rows = outputs.flatten(1)
    tall = outputs.transpose(0, 1).flatten(1)  # classes first, so that dense outputs fit too
    sums = (tall.sum(0) - 1).abs().reshape(len(outputs), -1)
    blind = torch.ones(len(images), dtype=torch.bool)
    if gradient is not None:
        flat = gradient.flatten(1)
        blind = ~(flat.isfinite() & (flat != 0)).any(1)
    verdicts = {
        "random_outputs": change > _SAME * rows.abs().amax(1),
        "probabilities": (rows.amin(1) >= 0) & (sums < _SAME).all(1),
        "zero_gradients": blind,
    }
    return {name: float(verdict.float().mean()) for name, verdict in verdicts.items()}
