"""What a config may hold: one dataclass a section. Hydra checks every config against them, keys and types."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class Paths:
    """Where things lie on this machine."""

    data: str = ""
    results: str = "results"


@dataclass
class Slurm:
    """What a site's SLURM wants to know of a job. What is empty or 0 is left to the site's defaults."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpu: str = "gpu"
    """GPUs as the site's --gres calls them: `gpu`, or of one model `gpu:a100`."""
    memory_gb: float = 0.0
    """Of each machine."""
    hours: float = 0.0
    """Time limit of a job. A run that needs longer saves before it, and goes on in the job's next turn."""
    save_seconds: int = 120
    """So long before the end of its time a run is asked to save."""
    extra: str = ""
    """More options of sbatch, for what has no name here: `--reservation=june`."""
    container: str = ""
    """What starts a command in the image, with all its options: `apptainer exec --nv image.sif`."""
    poll_seconds: int = 40
    """How soon SLURM is first asked how a job is; the longer nothing ends, the rarer."""


@dataclass
class Kubernetes:
    """What a pod of a run is made of. What is empty is left out."""

    namespace: str = "default"
    image: str = ""
    folder: str = "/app"
    """Where the image has the checkout."""
    data_claim: str = ""
    """The PersistentVolumeClaim with the pictures, mounted read-only at DATA."""
    results_claim: str = ""
    """The one, writable from several machines, where results/ is."""
    secret: str = ""
    """A secret whose keys become environment variables, as WANDB_API_KEY."""
    gpu: str = "nvidia.com/gpu"
    """GPUs as the cluster's device plugin calls them."""
    memory_gb: float = 0.0
    shared_memory_gb: float = 8.0
    """Size of /dev/shm, through which data-loader workers hand over batches."""
    node_selector: str = ""
    """Labels of machines, as `gpu-model=a100,zone=b`."""
    priority_class: str = ""


@dataclass
class Cluster:
    """How a run uses the machine. Numbers do not depend on it, beyond the order of float sums and what ranks of a
    detector draw each for itself (docs/numerics.md).
    """

    executor: str = "local"
    """Who starts runs: this machine (`local`), `slurm` or `kubernetes`."""
    num_processes: int = 1
    """Of a run, on all its machines together."""
    processes_per_node: int = 0
    """As many as one machine takes; 0 is any number."""
    gpus_per_process: int = 0
    """What is asked of a scheduler: 1 or none. (A process by itself takes the GPU that it finds.)"""
    num_threads: int = 2
    num_workers: int = 1
    image_python: str = "/app/.venv/bin/python"
    """The Python of the image, where runs are started in one."""
    num_jobs: int = 100
    """Jobs that wait or run in a cluster at once."""
    sync_batchnorm: str = "torch"
    """Or `apex`, on GPUs."""
    activation_checkpointing: bool = False
    """Keep each block's input only, and calculate the rest again in the backward pass: less memory, a third slower."""
    compile_backend: str = ""
    """torch.compile's, for the network: `inductor`; empty does not compile."""
    slurm: Slurm = field(default_factory=Slurm)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)


@dataclass
class Logging:
    """What a run tells, and how often."""

    every_steps: int = 10
    checkpoint_every_seconds: float = 300.0
    wandb: bool = True
    group: str = ""


@dataclass
class Sentinel:
    """When a run counts as collapsed: judged from `patience_epochs` on, and then `stop` or `warn`."""

    patience_epochs: float = MISSING
    on_collapse: str = "stop"


@dataclass
class Dataset:
    """One dataset: where it lies below `paths.data`, and whose it is."""

    name: str = MISSING
    source: str = MISSING
    layout: str = MISSING
    root: str = MISSING
    train: str = MISSING
    val: str = MISSING
    also_train_root: str | None = None
    """A second folder of the same layout, whose `train` is trained on as well."""


@dataclass
class Catalogue:
    """The datasets that the paper's tables need, as one person has them."""

    name: str = MISSING
    imagenet: Dataset = field(default_factory=Dataset)
    places205: Dataset = field(default_factory=Dataset)
    inat18: Dataset = field(default_factory=Dataset)
    voc07: Dataset = field(default_factory=Dataset)
    voc0712: Dataset = field(default_factory=Dataset)
    coco17: Dataset = field(default_factory=Dataset)


@dataclass
class View:
    """One kind of crop: `num` crops of `size_px` x `size_px`, each covering a share of the image drawn from `area`."""

    num: int = MISSING
    size_px: int = MISSING
    area: list[float] = MISSING


@dataclass
class Augment:
    """Colour and blur of every crop (A.2). Jitter is (brightness, contrast, saturation, hue)."""

    flip_probability: float = 0.5
    jitter: list[float] = MISSING
    jitter_probability: float = MISSING
    grayscale_probability: float = MISSING
    blur_probability: float = MISSING
    blur_radius_px: list[float] = MISSING


@dataclass
class Normalize:
    """Mean and standard deviation per colour channel, of pixels in [0, 1]."""

    mean: list[float] = MISSING
    std: list[float] = MISSING


@dataclass
class Crops:
    """The multi-crop pipeline of a pretraining (A.2)."""

    name: str = MISSING
    views: list[View] = MISSING
    augment: Augment = field(default_factory=Augment)
    normalize: Normalize = field(default_factory=Normalize)


@dataclass
class Network:
    """The trunk (a ResNet-50, `width` times as wide) and its projection head."""

    width: float = MISSING
    head_hidden: int | None = MISSING
    """None: the head is one linear layer."""
    head_batchnorm: bool = True
    embedding: int = 128
    batchnorm_images: int | None = None
    """BatchNorm's statistics in training are those of so many images (None: of the whole batch)."""


@dataclass
class Optimizer:
    """SGD with momentum under LARC, with warm-up and cosine decay per iteration (A.1)."""

    lr: float = MISSING
    final_lr: float = MISSING
    milestones: list[float] | None = None
    """In place of the cosine: shares of the epochs at which the rate falls, by one factor each, down to `final_lr`."""
    warmup_epochs: float = MISSING
    warmup_start_lr: float = MISSING
    momentum: float = 0.9
    weight_decay: float = 1e-6
    trust_coefficient: float | None = 0.001
    """LARC's; None: plain SGD."""


@dataclass
class Pretrain:
    """One pretraining run. `method` is checked against its dataclass in `models/` when the run starts."""

    kind: str = "pretrain"
    name: str = MISSING
    seed: int = 0
    scale: Any = MISSING
    data: Catalogue = field(default_factory=Catalogue)
    dataset: Any = MISSING
    crops: Crops = field(default_factory=Crops)
    network: Network = field(default_factory=Network)
    method: Any = MISSING
    optimizer: Optimizer = field(default_factory=Optimizer)
    epochs: int = MISSING
    batch_size: int = MISSING
    precision: str = MISSING
    on_bad_image: str = "stop"
    sentinel: Sentinel = field(default_factory=Sentinel)
    paths: Paths = field(default_factory=Paths)
    cluster: Cluster = field(default_factory=Cluster)
    logging: Logging = field(default_factory=Logging)


@dataclass
class Measure(Pretrain):
    """One measurement of a pretraining's network and step, without pictures.

    `measurement` is checked against its dataclass in `reproduce/measure.py` when the run starts.
    """

    kind: str = "measure"
    measurement: Any = MISSING


@dataclass
class Evaluate:
    """One evaluation of one checkpoint: `checkpoint` is a run_id of the same scale, or a file.

    `protocol` is checked against its dataclass in `evals/` when the run starts.
    """

    kind: str = "evaluate"
    name: str = MISSING
    seed: int = 0
    scale: Any = MISSING
    data: Catalogue = field(default_factory=Catalogue)
    dataset: Any = MISSING
    checkpoint: str = MISSING
    protocol: Any = MISSING
    normalize: Normalize = field(default_factory=Normalize)
    precision: str = MISSING
    on_bad_image: str = "stop"
    paths: Paths = field(default_factory=Paths)
    cluster: Cluster = field(default_factory=Cluster)
    logging: Logging = field(default_factory=Logging)


for _name, _schema in {"pretrain_schema": Pretrain, "evaluate_schema": Evaluate, "measure_schema": Measure}.items():
    ConfigStore.instance().store(name=_name, node=_schema)
