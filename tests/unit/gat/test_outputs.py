"""What a classifier must return."""

from collections import namedtuple

import pytest
import torch

from tasks.models import check_classifier_outputs

Named = namedtuple("Named", ["logits", "aux_logits"])
LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])


@pytest.mark.parametrize(
    "outputs", [LOGITS, LOGITS.bfloat16(), LOGITS.log_softmax(1), LOGITS.abs(), torch.zeros(2, 3), LOGITS[:0]]
)
def test_logits_and_log_probabilities_are_accepted(outputs):
    check_classifier_outputs(outputs, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_refused_in_any_precision(dtype):
    with pytest.raises(ValueError, match=r"got probabilities .* leave the softmax out"):
        check_classifier_outputs(LOGITS.softmax(1).to(dtype), 3)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((LOGITS, LOGITS), r"got tuple of 2; wrap it: return self.network\(images\)\[0\]"),
        (Named(LOGITS, None), r"got Named of 2; wrap it: return self.network\(images\).logits"),
        ({"out": LOGITS}, r"dict with keys \['out'\]; wrap it: return self.network\(images\)\['out'\]"),
        (None, "got NoneType; wrap it: a module whose forward"),
    ],
)
def test_containers_are_refused_with_the_way_to_wrap_the_model(outputs, message):
    with pytest.raises(ValueError, match=message):
        check_classifier_outputs(outputs, 3)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(2, 1000), r"a classifier of 3 classes must return logits \[b, 3\], got \[2, 1000\]"),
        (torch.zeros(2, 3, 8, 8), r"got \[2, 3, 8, 8\]"),
        (torch.zeros(2), r"got \[2\]$"),
        (torch.zeros(2, 3, dtype=torch.int64), "in floating point, got torch.int64"),
        (torch.tensor([[0.0, 1, 2], [0, float("nan"), 0]]), "1 of 2 rows hold NaN or infinity"),
    ],
)
def test_outputs_of_another_shape_or_kind_are_refused(outputs, message):
    with pytest.raises(ValueError, match=message):
        check_classifier_outputs(outputs, 3)


@pytest.mark.parametrize("outputs", [torch.tensor([1.5, -2.0]), torch.tensor([[1.5], [-2.0]])])
def test_a_single_logit_of_two_classes_is_refused_with_a_recipe_that_keeps_the_sigmoid(outputs):
    with pytest.raises(ValueError, match=r"torch.stack\(\[torch.zeros_like\(x\), x\], 1\)"):
        check_classifier_outputs(outputs, 2)
    x = outputs.flatten()
    two = torch.stack([torch.zeros_like(x), x], 1)
    check_classifier_outputs(two, 2)
    torch.testing.assert_close(two.softmax(1)[:, 1], x.sigmoid())
