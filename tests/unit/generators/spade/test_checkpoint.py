"""Official files and our own: what is read, what has to be said, what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from generators.spade.checkpoint import (
    Checkpoint,
    convert,
    infer_config,
    is_spade,
    plain_weights,
    read_checkpoint,
    write_safetensors,
)
from generators.spade.config import SPADEConfig
from generators.spade.networks import Generator, encode_layouts
from generators.spade.settings import SPADESpaceConfig
from generators.spade.space import measure_scales
from tests.toys import CLASSES, tiny_layouts, tiny_spade_generator

SAID: dict[str, Any] = {"label_nc": 3, "crop_size": 32, "num_upsampling_layers": "normal"}


def with_old_spectral_norm(generator: Generator) -> dict[str, Tensor]:
    """Its state as the released files have it, scaled so that only a right division gives the weights back."""
    state: dict[str, Tensor] = {}
    for name, value in generator.state_dict().items():
        if ".conv_" in name and name.endswith(".weight"):
            matrix = value.flatten(1)
            u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
            largest = (u[:, 0] @ matrix @ vh[0]).item()
            stem = name.removesuffix(".weight")
            # u and v are the first singular vectors, so the norm of 5 W is 5 s, and W_orig / sigma is W / s.
            state |= {
                f"{stem}.weight_orig": 5 * value,
                f"{stem}.weight_u": u[:, 0],
                f"{stem}.weight_v": vh[0],
            }
            value.div_(largest)
        else:
            state[name] = value.clone()
    return state


def save(path: Path, state: Any) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def images(config: SPADEConfig, state: dict[str, Tensor]) -> Tensor:
    generator = Generator(config)
    generator.load_state_dict(state, strict=True)
    return generator.eval()(encode_layouts(tiny_layouts(2), config)).detach()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("drop", [(), ("num_batches_tracked",), ("weight_v",)])
def test_spectral_norm_is_folded_whatever_the_age_of_the_file(tmp_path, prefix, drop):
    generator = tiny_spade_generator()
    state = {f"{prefix}{name}": value for name, value in with_old_spectral_norm(generator).items()}
    state = {name: value for name, value in state.items() if not name.endswith(drop or "nothing")}
    state |= {f"{prefix}head_0.norm_0.param_free_norm._tmp_running_mean": torch.zeros(32)}
    checkpoint = read_checkpoint(save(tmp_path / "latest_net_G.pth", state), SAID)
    torch.testing.assert_close(
        images(checkpoint.config, checkpoint.generator),
        images(generator.config, generator.state_dict()),
        atol=1e-5,
        rtol=0,
    )


def test_the_new_kind_of_spectral_norm_is_folded_too(tmp_path):
    torch.manual_seed(0)
    config = tiny_spade_generator().config
    trained = Generator(config, spectral=True)
    trained.train()(encode_layouts(tiny_layouts(3), config))
    assert any("parametrizations" in name for name in trained.state_dict())
    checkpoint = read_checkpoint(save(tmp_path / "x.pth", trained.state_dict()), SAID)
    wanted = trained.eval()(encode_layouts(tiny_layouts(2), config)).detach()
    torch.testing.assert_close(images(checkpoint.config, checkpoint.generator), wanted, atol=1e-6, rtol=0)


def test_half_of_a_spectral_norm_is_refused():
    state = with_old_spectral_norm(tiny_spade_generator())
    del state["up_1.conv_s.weight_u"]
    with pytest.raises(ValueError, match=r"spectral norm of up_1\.conv_s is incomplete"):
        plain_weights(state)


@pytest.mark.parametrize(
    ("semantic_nc", "wanted"),
    [
        (184, {"label_nc": 182, "contain_dontcare": True, "use_instance": True, "image_size": (256, 256)}),
        (
            151,
            {"label_nc": 150, "contain_dontcare": True, "dontcare_first": True, "use_instance": False},
        ),
        (
            36,
            {
                "label_nc": 35,
                "contain_dontcare": False,
                "use_instance": True,
                "num_upsampling_layers": "more",
                "image_size": (256, 512),
            },
        ),
    ],
)
def test_the_released_models_are_known_by_their_channels(semantic_nc, wanted):
    config = SPADEConfig(label_nc=semantic_nc, contain_dontcare=False, use_instance=False, ngf=2, nhidden=4)
    found = infer_config(Generator(config).state_dict(), {})
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert (found.ngf, found.nhidden, found.semantic_nc) == (2, 4, semantic_nc)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {},
            r"5 input channels .* have to be said: label_nc, contain_dontcare, use_instance, crop_size, num_",
        ),
        ({"label_nc": 4, "crop_size": 32}, "said: contain_dontcare, use_instance, num_upsampling_layers "),
        (SAID | {"label_nc": 7}, "said: contain_dontcare, use_instance"),
        (SAID | {"label_nc": 3, "use_instance": False}, "make 4 input channels; the file has 5"),
        (SAID | {"crop_size": 40}, "multiple of 32"),
        (SAID | {"ngf": 64}, "its tensors say ngf=2, not 64"),
        (SAID | {"use_vae": True}, "its tensors say use_vae=False, not True"),
        (SAID | {"color": 1}, "no setting color; on offer: label_nc, "),
    ],
)
def test_what_the_shapes_cannot_tell_has_to_be_said(settings, says):
    with pytest.raises(ValueError, match=says):
        infer_config(tiny_spade_generator().state_dict(), settings)


def test_one_extra_channel_is_told_apart_by_either_flag():
    state = tiny_spade_generator().state_dict()
    one = infer_config(state, SAID | {"label_nc": 4, "use_instance": True})
    other = infer_config(state, SAID | {"label_nc": 4, "contain_dontcare": True})
    assert (one.contain_dontcare, other.use_instance) == (False, False)


class Hostile:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, legacy):
    proof, path = tmp_path / "it_ran", tmp_path / "latest_net_G.pth"
    state = tiny_spade_generator().state_dict() | {"evil": Hostile(proof)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="refused, it holds more than tensors and nothing of it was run"):
        read_checkpoint(path, SAID)
    assert not is_spade(path)
    assert not proof.exists()
    path.write_bytes(pickle.dumps(Hostile(proof)))
    with pytest.raises(ValueError, match="neither a torch"):
        read_checkpoint(path, SAID)
    assert not proof.exists()


def test_what_is_no_checkpoint_is_refused_by_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint file"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"not a SPADE generator: no tensor fc.weight, only 0\.weight"):
        read_checkpoint(save(tmp_path / "linear.pth", {"0.weight": torch.ones(2, 2)}), SAID)
    with pytest.raises(ValueError, match="wanted a state dict"):
        read_checkpoint(save(tmp_path / "list.pth", [torch.ones(2)]), SAID)
    whole = save(tmp_path / "whole.pth", tiny_spade_generator().state_dict()).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"not a complete torch\.save file"):
        read_checkpoint(tmp_path / "half.pth", SAID)
    state = tiny_spade_generator().state_dict()
    state["up_1.conv_0.bias"][0] = float("nan")
    with pytest.raises(ValueError, match=r"up_1\.conv_0\.bias holds NaN"):
        read_checkpoint(save(tmp_path / "nan.pth", state), SAID)
    discriminator = {
        f"discriminator_0.{name}": value for name, value in nn.Conv2d(3, 3, 3).state_dict().items()
    }
    assert not is_spade(save(tmp_path / "D.pth", discriminator))
    assert not is_spade(tmp_path / "nowhere.pth")


def test_a_converted_file_is_what_was_read_with_licence_and_source(tmp_path):
    generator = tiny_spade_generator()
    source = save(tmp_path / "latest_net_G.pth", generator.state_dict())
    target = tmp_path / "scenes.safetensors"
    assert is_spade(source)
    convert(source, target, settings=SAID | {"classes": list(CLASSES)})
    back = read_checkpoint(target)
    assert is_spade(target)
    assert back.config == generator.config
    assert all(torch.equal(back.generator[name], value) for name, value in generator.state_dict().items())
    assert back.metadata["source_file"] == "latest_net_G.pth"
    assert "CC BY-NC-SA 4.0" in back.metadata["license"]
    with safe_open(target, framework="pt") as file:
        assert json.loads(file.metadata()["config"])["classes"] == list(CLASSES)
    with pytest.raises(FileExistsError, match="exists already"):
        convert(source, target, settings=SAID)
    with pytest.raises(ValueError, match="settings are for official files"):
        read_checkpoint(target, SAID)
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        convert(source, tmp_path / "x.pth")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_settings_build_a_space_with_the_scales_of_the_training_data(tmp_path):
    generator = tiny_spade_generator()
    scales = measure_scales(generator, tiny_layouts(3))
    path = tmp_path / "x.safetensors"
    metadata = {"site_scales": json.dumps(scales)}
    write_safetensors(path, Checkpoint(generator.config, generator.state_dict(), metadata))
    space = SPADESpaceConfig(checkpoint=path).build(CLASSES, image_size=(32, 32))
    assert {name: site.scale for name, site in space.sites.items()} == scales
    assert space.classes == CLASSES
    coarse = SPADESpaceConfig(checkpoint=path, coarse_grid=4, memory_budget_gib=1.0).build(CLASSES)
    assert coarse.sites["gamma/up_3/norm_1"].shape[1:] == (4, 4)
    assert coarse.max_width(["gamma/up_3/norm_1"])


def test_a_generator_of_other_scenes_than_the_data_is_refused(tmp_path):
    generator = tiny_spade_generator()
    path = tmp_path / "x.safetensors"
    write_safetensors(path, Checkpoint(generator.config, generator.state_dict(), {}))
    settings = SPADESpaceConfig(checkpoint=path)
    with pytest.raises(ValueError, match="draws circle, square, triangle, but the data has circle, square"):
        settings.build(CLASSES[:2])
    with pytest.raises(ValueError, match=r"draws images of 32x32 px .* but the data has 64x64"):
        settings.build(CLASSES, image_size=(64, 64))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors; shipped ones: "):
        SPADESpaceConfig(checkpoint=tmp_path / "nowhere.safetensors").build(CLASSES)
