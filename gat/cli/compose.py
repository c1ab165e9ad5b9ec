"""The root of a run's configuration, and the objects it describes: where all rooms meet."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pydantic import Field
from safetensors.torch import save_file
from torch import nn

from gat.attacks import Compute
from gat.config import Config, ConfigError, dump, load
from gat.evaluation.gallery import GallerySettings
from gat.evaluation.plan import EvaluationSettings, fingerprint, protocols
from gat.evaluation.strips import StripSettings
from gat.files import written_whole
from gat.perceptual import add_network
from gat.processes import keep_freed_memory
from gat.protocols import GenerativeSpace, Task
from gat.training.loop import TrainSettings
from gat.training.methods import MethodConfig, Standard, Tools
from generators import GeneratorConfig
from tasks.classification import ClassificationTask
from tasks.datasets import Dataset, DatasetConfig, SceneDataset
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.detection import DetectionTask
from tasks.models import MODELS, ModelConfig
from tasks.models.small_resnet import SmallResNetConfig
from tasks.segmentation import SegmentationTask

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = "base"  # what both models start from
ORIGINAL = "original"  # the model before the method, in records and tables


class RunConfig(Config):
    """One run: teach a model on clean images, go on with a method, judge both.

    Attributes:
        name: of the run; its folder is `out` or runs/<name>.
        data: images and labels, which say what the task is.
        model: a classifier, segmenter or detector, as the data asks for. With `weights` it starts from those and `base` is skipped.
        layouts: data whose layouts a generator of scenes draws in training, in place of those of `data`: a layout needs no photograph.
            Its train split is read.
        generator: whose latents are moved; needed by the gat method and by attacks on latents.
        oracle: an independent, robust classifier that judges whether adversarial images still show their label; for scenes a
            segmenter that reads the layout off them. It is never attacked and never trained on. Give it `weights`.
        base: training on clean images, from random weights.
        label_smoothing: of all training losses; attacks and evaluation know nothing of it.
        gallery, strips: what the page shows, of pictures and of scenes.
        method, train: what follows from there. The original is trained as long on clean images, for comparison.
        mixed_precision: None leaves it to `accelerate launch --mixed_precision`.
        trackers: besides metrics.jsonl: tensorboard, trackio, wandb.
    """

    name: str = Field("run", pattern=r"^[\w.-]+$")
    out: Path | None = None
    seed: int = Field(0, ge=0)
    data: DatasetConfig = cast(Any, FashionMNISTConfig())
    model: ModelConfig = SmallResNetConfig()
    layouts: DatasetConfig | None = None
    generator: GeneratorConfig | None = None
    oracle: ModelConfig | None = None
    base: TrainSettings = TrainSettings()
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    method: MethodConfig = Standard()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gallery: GallerySettings | None = None
    strips: StripSettings | None = None
    width: int = Field(128, ge=1, description="batch size of attacks while training")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()

    @property
    def folder(self) -> Path:
        """Where everything of the run goes."""
        return self.out or Path("runs") / self.name


@dataclass
class Run:
    """The objects of a configuration, on their device."""

    config: RunConfig
    accelerator: Accelerator
    train_data: Dataset
    test_data: Dataset
    tools: Tools
    layouts: SceneDataset | None = None

    def new_model(self) -> nn.Module:
        """A freshly built model; the same for the same seed."""
        torch.manual_seed(self.config.seed)
        image_size = self.train_data[0]["images"].shape[-1]
        return self.config.model.build(len(self.train_data.classes), image_size).to(self.accelerator.device)

    def model_path(self, name: str) -> Path:
        """Where the weights of a finished model lie."""
        return self.config.folder / f"{name}.safetensors"

    def finished_model(self, name: str) -> nn.Module:
        """A model of this run, read from its file.

        Raises:
            ValueError: if the file is missing or is of another model.
        """
        config = self.config.model.model_copy(update={"weights": self.model_path(name)})
        size = self.train_data[0]["images"].shape[-1]
        model = config.build(len(self.train_data.classes), size).to(self.accelerator.device).eval()
        return model.to(memory_format=torch.channels_last)  # what attacks on it run fastest in

    def save_model(self, model: nn.Module, name: str) -> None:
        """Atomically, by the main process."""
        if self.accelerator.is_main_process:
            tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
            with written_whole(self.model_path(name)) as temporary:
                save_file(tensors, temporary)
        self.accelerator.wait_for_everyone()


def open_run(config: RunConfig) -> Run:
    """Build everything but the model.

    Raises:
        ConfigError: if the settings do not fit each other or this machine.
    """
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"trackers: {tracker} is not installed; pip install 'gat-robust[{tracker}]'")
    if config.method.needs_generator and config.generator is None:
        raise ConfigError(
            f"method {config.method.name} needs a generator; on offer: generator.name=stylegan2"
        )
    # Accelerate would keep the precision of the first run for the life of the process, but those of a table may differ.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=str(config.folder),
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}: each would overwrite the "
            "others' files. On CPUs launch with: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train_gat.py ..."
        )
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise ConfigError("mixed_precision fp16 does nothing on a CPU; take bf16 or no")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    accelerator.init_trackers(config.name)

    if config.model.task != config.data.task:
        raise ConfigError(
            f"model {config.model.name} is for {config.model.task}, but data {config.data.name} is for {config.data.task}; "
            f"models for it: {', '.join(name for name, model in MODELS.items() if model.task == config.data.task)}"
        )
    if config.oracle is not None and config.oracle.task != (
        wanted_oracle := "classification" if config.data.task == "classification" else "segmentation"
    ):
        raise ConfigError(
            f"oracle {config.oracle.name} is for {config.oracle.task}; what {config.data.task} shows is judged by {wanted_oracle}"
        )
    train_data, test_data = config.data.build("train"), config.data.build("test")
    compute = Compute.of(accelerator.mixed_precision, config.width)
    generator = None
    if config.generator is not None:
        dtype = compute.autocast if compute.autocast == torch.bfloat16 else torch.float32
        generator = config.generator.build(drawn_classes(train_data), accelerator.device, dtype)
        drawn, wanted = tuple(generator.image_size), tuple(train_data[0]["images"].shape[-2:])
        if drawn != wanted:
            raise ConfigError(
                f"the generator draws images of {drawn[0]}x{drawn[1]} px, but the data has {wanted[0]}x{wanted[1]} px; "
                "set the data's size"
            )
        if generator.conditions == "layouts" and "layouts" not in train_data[0]:
            raise ConfigError(
                f"generator {config.generator.name} draws scenes from layouts, and data {config.data.name} has none; "
                "on offer for it: generator.name=stylegan2"
            )
    layouts = None if config.layouts is None else _layouts(config.layouts, train_data, generator)
    oracle = None
    if config.oracle is not None:
        weights = getattr(config.oracle, "weights", None)
        if weights is None:
            raise ConfigError("oracle.weights: an oracle is trained beforehand; name its weights")
        if not weights.is_file() and (REPOSITORY / weights).is_file():
            weights = REPOSITORY / weights
        settings = config.oracle.model_copy(update={"weights": weights})
        oracle = settings.build(len(drawn_classes(train_data)), train_data[0]["images"].shape[-1])
        oracle = (
            oracle.to(accelerator.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        )
        if settings.task == "classification":
            add_network("oracle", oracle)  # a network for perceptual attacks that is not the attacked one
    identity = hashlib.sha256(
        "|".join(
            [
                repr(config.data),
                repr(config.generator),
                repr(config.oracle),
                accelerator.mixed_precision,
                fingerprint(generator.generator) if generator else "",
                fingerprint(oracle) if oracle else "",
            ]
        ).encode()
    ).hexdigest()
    task = _task(config, train_data.classes)
    tools = Tools(task, generator, oracle, compute, identity)
    config.method.check(tools)
    config.train.check(config.method)
    return Run(config, accelerator, train_data, test_data, tools, layouts)


def _layouts(config: DatasetConfig, train_data: Dataset, generator: GenerativeSpace | None) -> SceneDataset:
    """The data whose layouts are drawn.

    Raises:
        ConfigError: if nothing draws layouts, or these are not like those of the training data.
    """
    if generator is None or generator.conditions != "layouts":
        raise ConfigError(
            "layouts: only a generator of scenes draws from layouts; on offer: generator.name=spade"
        )
    data = config.build("train")
    if not isinstance(data, SceneDataset) or not data.layout_classes:
        raise ConfigError(f"layouts: data {config.name} has none")
    for what, of in {
        "task": lambda scenes: scenes.task,
        "classes": lambda scenes: scenes.classes,
        "layout classes": drawn_classes,
        "images of size": lambda scenes: tuple(scenes[0]["images"].shape[-2:]),
        "labels of shape": lambda scenes: tuple(scenes[0]["labels"].shape),
    }.items():
        wanted, found = of(train_data), of(data)
        if wanted != found:
            raise ConfigError(
                f"layouts: {config.name} has {what} {found}, the training data {train_data.name} has {wanted}"
            )
    return data


def drawn_classes(data: Dataset) -> tuple[str, ...]:
    """What a generator of such pictures draws, and an oracle reads: the layout's classes of scenes, else those of the labels."""
    return data.layout_classes if isinstance(data, SceneDataset) else data.classes


def _task(config: RunConfig, classes: tuple[str, ...]) -> Task:
    """The data's task.

    Raises:
        ConfigError: for label smoothing where it means nothing.
    """
    if config.data.task == "classification":
        return ClassificationTask(classes, config.label_smoothing)
    if config.label_smoothing:
        raise ConfigError(f"label_smoothing is for classification, not for {config.data.task}")
    return SegmentationTask(classes) if config.data.task == "segmentation" else DetectionTask(classes)


NOT_LEARNT_FROM = {"num_test": True, "cache": True}
"""Settings of data that make no difference to what is trained, as `exclude` of a dump wants them."""


def check_same_run(config: RunConfig) -> None:
    """Refuses a folder whose models were made with other settings; judging them differently is fine.

    Raises:
        ConfigError: naming what differs.
    """
    earlier_file = config.folder / "config.yaml"
    if not earlier_file.is_file() or not any(config.folder.glob("training/*/state.pt")):
        return
    judging = dict.fromkeys(("name", "out", "evaluation", "gallery", "strips", "oracle", "trackers"), True)
    earlier, now = (
        c.model_dump(mode="json", exclude={**judging, "data": NOT_LEARNT_FROM})
        for c in (load(RunConfig, [earlier_file]), config)
    )
    different = [f"{key} was {earlier[key]}, is {now[key]}" for key in now if earlier[key] != now[key]]
    if different:
        raise ConfigError(
            f"{config.folder} holds models made with other settings ({'; '.join(different)}); "
            "choose another name= or out=, or remove the folder"
        )


def write_provenance(run: Run) -> None:
    """config.yaml, itself a valid --config, and provenance.json."""
    if not run.accelerator.is_main_process:
        return
    config, folder = run.config, run.config.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
    packages = ("torch", "torchvision", "accelerate", "timm", "numpy")
    facts: dict[str, Any] = {
        "command": f"python train_gat.py --config {folder / 'config.yaml'}",
        "task": run.tools.task.name,
        "classes": list(run.train_data.classes),
        "seeds": {"training": config.seed, "evaluation": config.evaluation.seed},
        "trained_on": {ORIGINAL: [], config.method.name: list(config.method.trained_on())},
        "data": {
            "name": run.train_data.name,
            "train": len(run.train_data),
            "test": len(run.test_data),
            "layouts": None if run.layouts is None else len(run.layouts),
        },
        "protocols": protocols(config.evaluation),
        "commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "hardware": {
            "device": _device_name(run.accelerator.device),
            "threads": torch.get_num_threads(),
            "processes": run.accelerator.num_processes,
            "mixed_precision": run.accelerator.mixed_precision,
        },
    }
    (folder / "provenance.json").write_text(json.dumps(facts, indent=1))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str:
    """Of the code that ran, marked if it was changed; '' outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
