"""Configuration: merging, types, and the words in which mistakes are refused."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator, model_validator

from gat.config import Config, ConfigError, dump, load, read_yaml


class Pixels(Config):
    name: Literal["pixels"] = "pixels"
    size_px: int = Field(32, ge=1)


class StyleGAN2(Config):
    name: Literal["stylegan2"] = "stylegan2"
    checkpoint: str = "shipped"
    psi: float = 1.0


class Latent(Config):
    name: Literal["latent"] = "latent"
    steps: int = Field(10, ge=1)
    step_size: dict[str, float] = {"style/*": 0.1, "noise/*": 0.2}
    groups: tuple[str, ...] = ("coarse", "middle", "fine")

    @field_validator("groups")
    @classmethod
    def _known(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        for group in groups:
            if group not in ("coarse", "middle", "fine"):
                raise ValueError(f"no group {group!r}; on offer: coarse, middle, fine")
        return groups


class PGD(Config):
    name: Literal["pgd"] = "pgd"
    steps: int = 20
    eps: float = 8 / 255
    norm: Literal["linf", "l2"] = "linf"


class Optim(Config):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float | Literal["auto"] = "auto"


Attack = Annotated[Latent | PGD, Field(discriminator="name")]


class Root(Config):
    name: str = "run"
    generator: Pixels | StyleGAN2 = Field(Pixels(), discriminator="name")
    attack: Attack = Latent(steps=7)
    attacks: dict[str, Attack] = {}
    sequence: list[Attack] = []
    oracle: Optim | None = None
    optim: Optim = Optim(lr=0.5)
    seed: int = 0


class Needs(Config):
    data: str
    optim: Optim


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def complaint(*overrides: str, files: list[Path] | None = None, cls: type[Config] = Root) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cls, files or [], overrides)
    return str(caught.value)


def test_nothing_said_is_the_defaults():
    assert load(Root) == Root()


def test_values_arrive_typed():
    config = load(
        Root,
        overrides=[
            "optim.lr=1e-4",
            "optim.betas=[0, 0.99]",
            "attack.step_size.style/16/*=0.3",
            "attack.step_size.style/[48]/*=1e-2",
            "generator.name=stylegan2",
            "generator.checkpoint='1e3'",
        ],
    )
    assert config.optim == Optim(lr=1e-4, betas=(0.0, 0.99))
    assert isinstance(config.attack, Latent)
    assert config.attack.step_size == {
        "style/*": 0.1,
        "noise/*": 0.2,
        "style/16/*": 0.3,
        "style/[48]/*": 0.01,
    }
    assert config.generator == StyleGAN2(checkpoint="1e3")


def test_an_override_edits_the_default_it_finds():
    assert load(Root, overrides=["attack.groups=[fine]"]).attack == Latent(steps=7, groups=("fine",))
    assert load(Root, overrides=["optim.warmup=3"]).optim == Optim(lr=0.5, warmup=3)
    assert load(Root, overrides=["oracle.lr=2"]).oracle == Optim(lr=2)


def test_later_files_and_overrides_win(tmp_path: Path):
    first = write(tmp_path, "seed: 1\noptim: {lr: 1, betas: [0, 0]}\nattack: {steps: 2}\n", "a.yaml")
    second = write(tmp_path, "seed: 2\noptim: {lr: 3e-4}\n", "b.yaml")
    config = load(Root, [first, second], ["seed=3"])
    assert (config.seed, config.optim, config.attack) == (
        3,
        Optim(lr=3e-4, betas=(0.0, 0.0)),
        Latent(steps=2),
    )


def test_a_file_replaces_a_table_and_an_override_edits_it(tmp_path: Path):
    file = write(tmp_path, "attack:\n  step_size: {'style/4/*': 1}\n")
    assert load(Root, [file]).attack == Latent(steps=7, step_size={"style/4/*": 1.0})
    edited = load(Root, [file], ["attack.step_size.noise/*=2"])
    assert edited.attack == Latent(steps=7, step_size={"style/4/*": 1.0, "noise/*": 2.0})


@pytest.mark.parametrize(
    "overrides",
    [
        ["attack.name=pgd", "attack={eps: 0.25, steps: 2}"],
        ["attack={eps: 0.25, steps: 2}", "attack.name=pgd"],
        ["attack={name: pgd, steps: 2}", "attack={eps: 0.25}"],
    ],
)
def test_an_override_of_several_settings_merges_as_a_file_does(tmp_path: Path, overrides: list[str]):
    file = write(
        tmp_path, "attack: {steps: 3}\noptim: {lr: 2, betas: [0, 0]}\nattacks: {weak: {name: pgd}}\n"
    )
    assert load(Root, [file], overrides).attack == PGD(eps=0.25, steps=2)
    config = load(
        Root, [file], ["optim={warmup: 3}", "attack={step_size: {'noise/*': 1}}", "attacks.weak={steps: 1}"]
    )
    assert config.optim == Optim(lr=2, betas=(0.0, 0.0), warmup=3)
    assert config.attack == Latent(steps=3, step_size={"noise/*": 1.0})
    assert config.attacks == {"weak": PGD(steps=1)}
    assert load(Root, [file], ["optim={}", "attack={}"]) == load(Root, [file])
    assert load(Root, [file], ["oracle={}"]).oracle == Optim()
    assert load(Root, [file], ["attacks={other: {name: latent}}"]).attacks == {"other": Latent()}


@pytest.mark.parametrize(
    "overrides", [["attack.name=pgd", "attack.eps=0.5"], ["attack.eps=0.5", "attack.name=pgd"]]
)
def test_choosing_another_kind_drops_what_was_said_for_the_old_one(tmp_path: Path, overrides: list[str]):
    file = write(tmp_path, "name: run7\nattack: {name: latent, steps: 3, groups: [fine]}\n")
    config = load(Root, [file], overrides)
    assert config.attack == PGD(eps=0.5)  # steps is 20 again: 3 was meant for the other attack
    assert config.name == "run7"


def test_naming_the_kind_that_is_there_changes_nothing(tmp_path: Path):
    file = write(tmp_path, "attack: {steps: 3}\n")
    assert load(Root, [file], ["attack.name=latent"]).attack == Latent(steps=3)


def test_a_plain_field_called_name_drops_nothing(tmp_path: Path):
    file = write(tmp_path, "seed: 5\nname: a\n")
    assert load(Root, [file], ["name=b"]) == Root(seed=5, name="b")


def test_tables_and_lists_of_kinds_can_be_edited(tmp_path: Path):
    file = write(
        tmp_path,
        "attacks: {weak: {name: pgd, steps: 1}, ours: {name: latent}}\nsequence: [{name: pgd}, {name: latent}]\n",
    )
    config = load(Root, [file], ["attacks.weak.eps=0.5", "attacks.ours.name=pgd", "sequence.1.steps=2"])
    assert config.attacks == {"weak": PGD(steps=1, eps=0.5), "ours": PGD()}
    assert config.sequence == [PGD(), Latent(steps=2)]
    assert (
        complaint("sequence.5.steps=2", files=[file])
        == "sequence.5.steps: sequence is a list of 2, got index '5'"
    )


def test_references_are_resolved(tmp_path: Path):
    file = write(tmp_path, "seed: 4\nattack: {steps: '${seed}'}\n")
    assert load(Root, [file], ["seed=9"]).attack == Latent(steps=9)
    assert "sead" in complaint("attack.steps=${sead}")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("attack.stps=9", "attack.stps: unexpected key, got 9; did you mean 'steps'?"),
        (
            "generator.q=1",
            "generator.q: unexpected key, got 1; on offer: name, size_px",
        ),
        ("generator.name=dcgan", "generator.name: 'dcgan' is not one of ['pixels', 'stylegan2']"),
        ("attack=pgd", "attack: input should be a valid dictionary or object to extract fields from, got 'pgd'"),
        ("optim.lr=-1", "optim.lr: input should be greater than 0, got -1"),
        ("attack.steps=many", "attack.steps: input should be a valid integer, unable to parse string as an integer, got 'many'"),
        ("attack.groups=[coarse,tiny]", "attack.groups: no group 'tiny'; on offer: coarse, middle, fine"),
        ("optim.betas=[0]", "optim.betas.1: wanted, but not given"),
        (
            "attack.step_size.s/4=x",
            "attack.step_size.s/4: input should be a valid number, unable to parse string as a number, got 'x'",
        ),
        ("attacks.a.steps=1", "attacks.a.name: not given; choose one of ['latent', 'pgd']"),
        ("attack", "override 'attack': wanted key=value, with dots between the parts of the key"),
        ("attack..steps=1", "override 'attack..steps=1': wanted key=value, with dots between the parts of the key"),
        ("attack.steps=[1", "override 'attack.steps=[1': '[1' is not a YAML value"),
        ("attack.steps=???", "attack.steps: wanted, but '???' says that it is still missing"),
    ],
)  # fmt: skip
def test_mistakes_are_named(override: str, says: str):
    assert complaint(override).lower() == says.lower()


def test_every_branch_of_a_plain_union_is_mentioned_once():
    says = complaint("optim.warmup=soon")
    assert says.startswith("optim.warmup: ")
    assert "number" in says
    assert "'auto'" in says
    assert "\n" not in says


def test_all_mistakes_are_listed_each_on_a_line():
    assert complaint("optim.betas=[1,2]", cls=Needs) == "data: wanted, but not given"
    assert complaint(cls=Needs) == "data: wanted, but not given\noptim: wanted, but not given"


def test_a_message_of_a_whole_model_has_no_stray_colon():
    class Pair(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _ordered(self) -> "Pair":
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")
            return self

    assert complaint("low=2", cls=Pair) == "low 2 is above high 1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("seed: 1\nattack: {steps: 3\nseed: 2\n", "line 3: "),
        ("seed: 1\nfoo\n", "line 3: could not find expected ':'"),
        ("- 1\n- 2\n", "line 1: wanted `key: value` lines, got a sequence"),
        ("just words", "line 1: wanted `key: value` lines, got a scalar"),
        ("seed: 1\nseed: 2\n", "line 2: found duplicate key seed"),
        ("seed: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
    ],
)
def test_files_that_are_no_mapping_are_refused_with_the_line(tmp_path: Path, text: str, says: str):
    file = write(tmp_path, text)
    message = complaint(files=[file])
    assert str(file) in message
    assert says in message


def test_a_missing_file_names_its_neighbours(tmp_path: Path):
    write(tmp_path, "seed: 1\n", "tiny.yaml")
    message = complaint(files=[tmp_path / "tny.yaml"])
    assert message == f"no config file {tmp_path / 'tny.yaml'}; on offer there: {tmp_path / 'tiny.yaml'}"


def test_a_folder_and_binary_noise_are_no_config(tmp_path: Path):
    assert "cannot read config file" in complaint(files=[tmp_path])
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read config file" in complaint(files=[tmp_path / "noise.yaml"])


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Root().seed = 3  # type: ignore[misc]


def test_read_yaml_reads_exponents_as_numbers(tmp_path: Path):
    assert read_yaml(write(tmp_path, "a: 1e-4\nb: '1e-4'\n")) == {"a": 1e-4, "b": "1e-4"}


words = st.text("abz/*-_.0123456789e+[]: #'\"{}~", min_size=1, max_size=8)
numbers = st.floats(min_value=1e-9, allow_infinity=False) | st.integers(1, 10**9).map(float)
attacks = st.builds(
    Latent,
    steps=st.integers(1, 99),
    step_size=st.dictionaries(words, numbers, max_size=3),
    groups=st.lists(st.sampled_from(["coarse", "middle", "fine"])).map(tuple),
) | st.builds(PGD, steps=st.integers(), eps=st.floats(allow_nan=False), norm=st.sampled_from(["linf", "l2"]))
optims = st.builds(Optim, lr=numbers, warmup=numbers | st.just("auto"))
roots = st.builds(
    Root,
    name=words,
    generator=st.builds(StyleGAN2, checkpoint=words | st.sampled_from(["1e3", "null", "yes", "0x1f", "12:30", "1_0", ""]))
    | st.builds(Pixels),
    attack=attacks,
    attacks=st.dictionaries(words, attacks, max_size=2),
    sequence=st.lists(attacks, max_size=2),
    oracle=st.none() | optims,
    optim=optims,
)  # fmt: skip


@given(config=roots)
@settings(max_examples=40)
def test_what_is_dumped_loads_back_to_the_same_settings(
    config: Root, tmp_path_factory: pytest.TempPathFactory
):
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert load(Root, [file]) == config
    assert dump(load(Root, [file])) == dump(config)
