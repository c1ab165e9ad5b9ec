"""What detectors of other libraries have in common: random samples that repeat, boxes of resized images, a first look."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.detection import check_detector_outputs
from tasks.models.errors import one_line
from tasks.models.normalized import Normalized


@contextmanager
def repeatable(device: torch.device, on: bool) -> Iterator[Callable[[], object]]:
    """Gives a function that sets the global random state to a fixed one; in the end it is what it was. Off, it does nothing.

    Two-stage detectors compute their losses on a random sample of places. Drawn anew each time, it makes the loss of an attack jump
    about, and the attack leave a trace.
    """
    if not on:
        yield lambda: None
        return
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        yield lambda: torch.cuda.manual_seed(0) if cuda else torch.default_generator.manual_seed(0)


def px_per_px(images: Float[Tensor, "b c h w"], inputs: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, " 4"]:
    """Px of the images in one px of what the network gets, for x0 y0 x1 y1."""
    (height, width), (seen_height, seen_width) = images.shape[2:], inputs.shape[2:]
    return torch.tensor([width / seen_width, height / seen_height] * 2, device=images.device)


def try_out_detector(model: Normalized, num_classes: int, image_size: int, who: str) -> None:
    """Shows a freshly built detector one grey image, in eval mode, so that a misfit is found here and not in training.

    Args:
        who: Name of the model for the message.

    Raises:
        ValueError: If it cannot read images of this size, or is of other classes.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: networks may cache tensors that training needs later
            outputs = model(torch.full((1, 3, image_size, image_size), 0.5))
            check_detector_outputs(outputs, num_classes)
    except Exception as error:  # a network too deep for its input ends in any exception type
        raise ValueError(
            f"{who} cannot find objects in images of {image_size} px ({one_line(error)}); use larger images or set resize"
        ) from error
    finally:
        model.train(was_training)
