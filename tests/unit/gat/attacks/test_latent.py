"""The paper's attack on a tiny random StyleGAN2: its equations, its choices, and that it does not depend on how it is computed."""

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import Compute, LatentAttack
from gat.attacks.latent import PAPER_STEP_SIZE
from gat.attacks.run import Outcome
from gat.latents import Latents
from gat.spaces.pixels import PixelSpace
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, balanced, conv_classifier, tiny_space

TASK = ClassificationTask(CLASSES)
N = 24


@pytest.fixture(scope="module")
def space() -> StyleGAN2Space:
    return tiny_space()


@pytest.fixture(scope="module")
def latents(space: StyleGAN2Space) -> Latents:
    return space.sample(torch.arange(N) % 3, torch.arange(N), seed=1)


@pytest.fixture(scope="module")
def model(space: StyleGAN2Space, latents: Latents) -> nn.Module:
    """Random, but with answers of all classes."""
    return balanced(conv_classifier(), render(space, latents))


@pytest.fixture(scope="module")
def labels(space: StyleGAN2Space, latents: Latents, model: nn.Module) -> Tensor:
    """What the model says: it is right everywhere."""
    found = model(render(space, latents)).argmax(1)
    assert len(found.unique()) == 3
    return found


def render(space: StyleGAN2Space, latents: Latents) -> Tensor:
    return space.freeze(latents, list(space.sites))(latents, torch.arange(len(next(iter(latents.values())))))


def final_images(space: StyleGAN2Space, latents: Latents, outcome: Outcome) -> Tensor:
    return render(space, latents | outcome.latents)


def test_one_step_is_equation_1_with_its_own_size_for_every_site(space, latents, model, labels):
    """x + step * scale * sign(gradient of the loss), style and noise each by their own step."""
    attack = LatentAttack(max_steps=1, step_size={"style/*": 0.004, "noise/*": 0.002}, stop_when_fooled=False)
    leaves = {name: value.clone().requires_grad_() for name, value in latents.items()}
    images = space.freeze(latents, list(latents))(leaves, torch.arange(N))
    loss = TASK.loss(model(images), labels)
    gradients = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))
    outcome = attack.run(TASK, model, space, latents, labels)
    up = outcome.loss > loss.detach()
    assert up.float().mean() > 0.9  # where the step went downhill, the start is the best iterate
    for name, site in space.sites.items():
        step = {"style": 0.004, "noise": 0.002}[name.split("/")[0]] * site.scale
        moves = (outcome.latents[name] - latents[name])[up] / step
        clear = gradients[name][up].abs() > 1e-6  # rounding decides the sign of the others
        torch.testing.assert_close(moves[clear], gradients[name][up].sign()[clear], rtol=0, atol=2e-3)


def test_absolute_steps_are_taken_as_they_are(space, latents, model, labels):
    attack = LatentAttack(
        max_steps=1, step_size=PAPER_STEP_SIZE, unit="absolute", goal="least_likely", stop_when_fooled=False
    )
    outcome = attack.run(TASK, model, space, latents, labels)
    moved = outcome.latents["style/8/conv0"] - latents["style/8/conv0"]
    taken = moved.abs().amax(1) > 0
    assert taken.any()
    torch.testing.assert_close(
        moved[taken].abs().amax(1), torch.full((int(taken.sum()),), 0.004), rtol=0, atol=1e-6
    )


def test_all_iterates_move_by_whole_steps(space, latents, model, labels):
    step = 0.1
    attack = LatentAttack(max_steps=4, step_size={"*": step}, unit="absolute", stop_when_fooled=False)
    outcome = attack.run(TASK, model, space, latents, labels)
    for name, value in outcome.latents.items():
        steps = ((value - latents[name]) / step).abs()
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert steps.max() <= 4 + 1e-4


@pytest.mark.parametrize(
    ("move", "kinds"), [("noise", {"noise"}), ("style", {"style"}), ("both", {"style", "noise"})]
)
def test_only_the_chosen_kind_of_latent_moves(space, latents, model, labels, move, kinds):
    outcome = LatentAttack(move=move).run(TASK, model, space, latents, labels)
    assert {name.split("/")[0] for name in outcome.latents} == kinds
    assert {name.split("_")[1] for name in outcome.distances} == kinds | {"pixels"}
    assert outcome.success.any()
    torch.testing.assert_close(outcome.images, final_images(space, latents, outcome), rtol=0, atol=1e-6)


@pytest.mark.parametrize("group", ["coarse", "fine", "all"])
@pytest.mark.parametrize("move", ["style", "noise", "both"])
def test_a_group_selects_its_resolutions(space, group, move):
    wanted = {"coarse": {4, 8}, "fine": {16}, "all": {4, 8, 16}}[group]
    moved = LatentAttack(group=group, move=move).moved(space)
    assert {int(name.split("/")[1]) for name in moved} == wanted
    assert ("style" in {name.split("/")[0] for name in moved}) == (move != "noise")
    assert moved == [name for name in space.sites if name in moved]  # in the order of the image


def test_globs_select_any_other_choice_of_layers(space):
    assert LatentAttack(sites=("style/8/*", "noise/16/conv1")).moved(space) == [
        name for name in space.sites if name.startswith("style/8/") or name == "noise/16/conv1"
    ]


def test_an_impossible_choice_names_what_there_is(space):
    with pytest.raises(ValueError, match=r"has no middle both site; on offer: .*style/4/conv1"):
        LatentAttack(group="middle").moved(space)
    with pytest.raises(ValueError, match=r"pixels has no coarse both site; on offer: pixels"):
        LatentAttack(group="coarse").moved(PixelSpace((3, 8, 8)))
    with pytest.raises(ValueError, match=r"no latent matches 'style/32/\*'.*on offer: .*style/16/conv0"):
        LatentAttack(sites=("style/32/*",)).moved(space)
    with pytest.raises(ValueError, match="group"):
        LatentAttack(group="medium")
    with pytest.raises(ValueError, match=r"no step size for noise/4/conv1.*style/\*"):
        LatentAttack(step_size={"style/*": 0.1}).steps(space, ["noise/4/conv1"])


def test_later_globs_refine_earlier_ones(space):
    attack = LatentAttack(step_size={"*": 0.1, "style/16/*": 0.3}, unit="absolute", eps={"noise/*": 0.7})
    rule = attack.steps(space, ["style/8/conv0", "style/16/conv0", "noise/8/conv0"])
    assert rule.size == {"style/8/conv0": 0.1, "style/16/conv0": 0.3, "noise/8/conv0": 0.1}
    assert rule.eps == {"noise/8/conv0": 0.7}


def test_a_targeted_attack_hits_its_target(space, latents, model, labels):
    targets = (labels + 1) % 3
    outcome = LatentAttack(goal="targeted", max_steps=60).run(
        TASK, model, space, latents, labels, targets=targets
    )
    assert outcome.success.float().mean() > 0.5
    assert torch.equal(outcome.predictions == targets, outcome.success)
    fresh = model(final_images(space, latents, outcome)).argmax(1)
    assert (fresh == targets)[outcome.success].all()
    assert outcome.targets is not None
    assert torch.equal(outcome.targets, targets)


def test_another_wrong_answer_is_no_hit(space, latents, model, labels):
    """Of those that end on the third class none counts, whatever the attack did on its way."""
    targets = (labels + 1) % 3
    attack = LatentAttack(goal="targeted", max_steps=3, step_size={"*": 0.02})
    outcome = attack.run(TASK, model, space, latents, labels, targets=targets)
    assert not (outcome.success & (outcome.predictions != targets)).any()


def test_targets_that_are_missing_or_the_label_are_refused(space, latents, model, labels):
    attack = LatentAttack(goal="targeted")
    with pytest.raises(ValueError, match="needs targets"):
        attack.run(TASK, model, space, latents, labels)
    targets = (labels + 1) % 3
    targets[:2] = labels[:2]
    with pytest.raises(ValueError, match="2 targets equal the label"):
        attack.run(TASK, model, space, latents, labels, targets=targets)


def test_the_least_likely_class_is_aimed_at_and_never_is_the_label(space, latents, model):
    some = torch.arange(N) % 3  # right and wrong ones
    outcome = LatentAttack(goal="least_likely").run(TASK, model, space, latents, some)
    assert outcome.targets is not None
    assert (outcome.targets != some).all()
    logits = model(outcome.start_images)
    others = torch.stack(
        [logits[i].masked_fill(torch.arange(3) == some[i], torch.inf).argmin() for i in range(N)]
    )
    assert torch.equal(outcome.targets, others)
    assert (outcome.success <= outcome.attacked).all()


def test_random_wrong_classes_are_aimed_at_and_any_wrong_answer_counts(space, latents, model, labels):
    attack = LatentAttack(goal="random")
    outcome = attack.run(TASK, model, space, latents, labels)
    assert (outcome.targets != labels).all()
    assert set(((outcome.targets - labels) % 3).tolist()) == {1, 2}  # both others come up
    assert torch.equal(outcome.success, model(outcome.images).argmax(1) != labels)
    nearer = TASK.loss(model(outcome.images), outcome.targets)
    assert (nearer < TASK.loss(model(outcome.start_images), outcome.targets))[outcome.iterations > 0].all()


def test_what_is_aimed_at_at_random_is_the_examples_own(space, latents, model, labels):
    attack, ids = LatentAttack(goal="random", stop_when_fooled=False), torch.arange(N) + 100
    together = attack.run(TASK, model, space, latents, labels, ids=ids)
    for rows in torch.arange(N).split(8):
        part = {name: value[rows] for name, value in latents.items()}
        alone = attack.run(TASK, model, space, part, labels[rows], ids=ids[rows])
        assert torch.equal(alone.targets, together.targets[rows])
        torch.testing.assert_close(alone.images, together.images[rows], rtol=0, atol=1e-5)
    others = attack.run(TASK, model, space, latents, labels).targets  # of ids 0, 1, 2, ...
    assert not torch.equal(others, together.targets)


def test_against_the_label_is_up_the_difference_of_two_logits(space, latents, model, labels):
    """Of a classifier: log-sum-exp, which both losses share, has cancelled."""
    attack = LatentAttack(
        goal="targeted", contrast=True, max_steps=1, step_size={"*": 0.004}, stop_when_fooled=False
    )
    targets = (labels + 1) % 3
    leaves = {name: value.clone().requires_grad_() for name, value in latents.items()}
    logits = model(space.freeze(latents, list(latents))(leaves, torch.arange(N)))
    lead = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    gradients = dict(zip(leaves, torch.autograd.grad(lead.sum(), list(leaves.values())), strict=True))
    outcome = attack.run(TASK, model, space, latents, labels, targets=targets)
    after = model(outcome.images)
    up = (after.gather(1, targets[:, None]) - after.gather(1, labels[:, None])).squeeze(1) > lead.detach()
    assert up.float().mean() > 0.9
    for name, site in space.sites.items():
        moves = (outcome.latents[name] - latents[name])[up] / (0.004 * site.scale)
        clear = gradients[name][up].abs() > 1e-5  # rounding decides the sign of the others
        torch.testing.assert_close(moves[clear], gradients[name][up].sign()[clear], rtol=0, atol=2e-3)


@pytest.mark.parametrize("others", [{"goal": "loss"}, {"goal": "least_likely", "pixels": "cospgd"}])
def test_without_two_answers_or_with_weighted_pixels_there_is_no_contrast(others):
    with pytest.raises(ValueError, match=f"contrast needs an answer to aim at.*got goal '{others['goal']}'"):
        LatentAttack(contrast=True, **others)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_budgets_per_site_are_kept_in_float64(space, latents, model, labels, norm):
    eps = {"style/*": 0.5, "noise/*": 0.8, "noise/16/*": 0.1}
    attack = LatentAttack(norm=norm, eps=eps, step_size={"*": 0.4}, max_steps=6, stop_when_fooled=False)
    outcome = attack.run(TASK, model, space, latents, labels)
    for name, value in outcome.latents.items():
        kind, resolution, _ = name.split("/")
        budget = (
            0.1 if (kind, resolution) == ("noise", "16") else {"style": 0.5, "noise": 0.8}[kind]
        ) * space.sites[name].scale
        offset = (value.double() - latents[name].double()).flatten(1)
        length = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
        assert (length <= budget + 1e-6).all(), name
        assert length.max() > 0.5 * budget, name


def test_success_is_what_a_fresh_forward_pass_says(space, latents, model, labels):
    some = (labels + (torch.arange(N) % 4 == 0)) % 3  # wrong on every fourth
    outcome = LatentAttack(max_steps=3, step_size={"*": 0.02}).run(
        TASK, model, space, latents, some, compute=Compute(width=7)
    )
    before = model(render(space, latents)).argmax(1)
    after = model(final_images(space, latents, outcome)).argmax(1)
    assert torch.equal(outcome.clean_predictions, before)
    assert torch.equal(outcome.attacked, before == some)
    assert torch.equal(outcome.success, (before == some) & (after != some))
    assert 0 < outcome.success.sum() < outcome.attacked.sum()
    for name in outcome.latents:  # those that were wrong already did not move
        assert torch.equal(outcome.latents[name][~outcome.attacked], latents[name][~outcome.attacked])


def test_an_example_stops_with_its_first_wrong_answer(space, latents, model, labels):
    outcome = LatentAttack().run(TASK, model, space, latents, labels, record=True)
    assert outcome.trajectory is not None
    assert len(outcome.trajectory) == 11
    wrong = torch.stack([model(frame).argmax(1) != labels for frame in outcome.trajectory])
    for i in outcome.success.nonzero().squeeze(1).tolist():
        assert int(wrong[:, i].float().argmax()) == outcome.iterations[i]
    assert (outcome.iterations[~outcome.success] == 10).all()
    torch.testing.assert_close(outcome.trajectory[0], outcome.start_images)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_recorded_images_are_what_fewer_steps_end_at(space, latents, model, labels, autocast):
    compute = Compute(width=5, autocast=autocast)

    def run(steps: int, record: bool = False):
        attack = LatentAttack(
            max_steps=steps, stop_when_fooled=False, step_size={"*": 0.01}
        )  # every step gains
        return attack.run(TASK, model, space, latents, labels, compute=compute, record=record)

    frames = run(3, record=True).trajectory
    for t in range(4):
        torch.testing.assert_close(frames[t], run(t).images, rtol=0, atol=1e-5)
    assert ((frames[1:] - frames[:-1]).abs().flatten(2).amax(2) > 1e-4).all()


def test_the_width_of_the_batch_changes_no_verdict(space, latents, model, labels):
    attack = LatentAttack(max_steps=4)
    outcomes = [
        attack.run(TASK, model, space, latents, labels, compute=Compute(width=width))
        for width in (1, 3, N, 5 * N)
    ]
    for other in outcomes[1:]:
        assert torch.equal(other.success, outcomes[0].success)
        assert torch.equal(other.iterations, outcomes[0].iterations)
        assert torch.equal(other.predictions, outcomes[0].predictions)


def test_at_equal_width_the_neighbours_do_not_matter_to_the_last_bit(space, latents, model, labels):
    attack, compute = LatentAttack(max_steps=4), Compute(width=6)
    chosen = torch.tensor([4, 9, 2, 17, 11, 20])

    def run(rows: Tensor) -> Outcome:
        return attack.run(
            TASK,
            model,
            space,
            {name: value[rows] for name, value in latents.items()},
            labels[rows],
            compute=compute,
        )

    once, again = run(chosen), run(chosen.flip(0))
    for name in once.latents:
        assert torch.equal(once.latents[name], again.latents[name].flip(0)), name
    assert torch.equal(once.iterations, again.iterations.flip(0))


def test_bfloat16_agrees_with_float32_within_a_point():
    """On a classifier that learned what it is asked: the answers of a random one hang on the last bits of its images."""
    n = 300
    exact, rough = tiny_space(), tiny_space(dtype=torch.bfloat16)
    labels = torch.arange(n) % 3
    latents = exact.sample(labels, torch.arange(n), seed=2)
    images = render(exact, latents)
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, 3))
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(100):
        optimizer.zero_grad()
        TASK.loss(model(images), labels).mean().backward()
        optimizer.step()
    attack = LatentAttack(max_steps=2, step_size={"style/*": 0.05, "noise/*": 0.2})
    full = attack.run(TASK, model, exact, latents, labels)
    half = attack.run(TASK, model, rough, latents, labels, compute=Compute(autocast=torch.bfloat16))
    # Judged once more with the generator in float32.
    verified = (model(final_images(exact, latents, half)).argmax(1) != labels) & half.attacked
    rates = [float(s.float().mean()) for s in (full.success, half.success, verified)]
    assert 0.1 < rates[0] < float(full.attacked.float().mean()) - 0.03
    assert max(rates) - min(rates) <= 0.01, rates


def test_the_model_and_the_random_state_are_left_as_found(space, latents, labels):
    model = balanced(conv_classifier(), render(space, latents)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    LatentAttack().run(TASK, model, space, latents, labels)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in space.generator.parameters())
