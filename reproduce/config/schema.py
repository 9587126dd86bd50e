"""The schema of every config: one dataclass per section. Hydra checks keys and types of each config against it."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class Paths:
    """Where files are on this machine."""

    data_root: str = ""
    """The folder that holds the datasets, each in its own subfolder."""
    results: str = "results"


@dataclass
class Slurm:
    """What to request from SLURM for a job. An empty string or 0 leaves the choice to the site's defaults."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gres: str = "gpu"
    """The site's --gres name of a GPU, without the count: `gpu`, or of one model `gpu:a100`."""
    memory_gb: float = 0.0
    """Memory to request on each machine."""
    time_limit_hours: float = 0.0
    """Time limit of a job. A longer run saves a checkpoint before the limit and resumes in the requeued job."""
    signal_before_end_seconds: int = 120
    """How long before its time limit SLURM signals a run to save a checkpoint."""
    extra_args: str = ""
    """Other options of sbatch, e.g. `--reservation=june`."""
    container_command: str = ""
    """The command that starts another one inside the container, e.g. `apptainer exec --nv image.sif`."""
    poll_seconds: int = 40
    """Time before the first query of a job's state. The interval grows while no job ends."""


@dataclass
class Kubernetes:
    """What to put into a run's pods. Empty values are left out of the manifest."""

    namespace: str = "default"
    image: str = ""
    workdir: str = "/app"
    """Folder of the checkout inside the image."""
    data_claim: str = ""
    """PersistentVolumeClaim with the images, mounted read-only at DATA."""
    results_claim: str = ""
    """PersistentVolumeClaim for results/, writable from several machines."""
    secret: str = ""
    """Secret whose keys become environment variables, e.g. WANDB_API_KEY."""
    gpu_resource: str = "nvidia.com/gpu"
    """Resource name of a GPU, as the cluster's device plugin defines it."""
    memory_gb: float = 0.0
    """Memory to request for each pod."""
    shared_memory_gb: float = 8.0
    """Size of /dev/shm, which data-loader workers use to pass batches."""
    node_selector: str = ""
    """Labels of machines, e.g. `gpu-model=a100,zone=b`."""
    priority_class: str = ""


@dataclass
class Cluster:
    """How a run uses machines.

    Numbers do not depend on it, except for the order of float sums and what the ranks of a detector draw at random
    (docs/numerics.md).
    """

    executor: str = "local"
    """What starts runs: `local` (this machine), `slurm` or `kubernetes`."""
    num_processes: int = 1
    """Processes of a run, on all its machines together."""
    detector_processes: int = 1
    """Processes of an evaluation that trains a detector; unless set, as many as in the protocol's paper."""
    processes_per_node: int = 0
    """The most processes that one machine takes; 0 sets no limit."""
    gpus_per_process: int = 0
    """GPUs to request from the scheduler for each process: 1, or 0. With 1 a run without a GPU is an error, with 0 a
    process uses the GPU that it finds."""
    cores_per_gpu: int = 8
    """Cores to request from the scheduler with each GPU, whose data-loader workers need them."""
    collective_timeout_minutes: float = 120.0
    """The longest that a rank waits for others, e.g. while rank 0 lists the images; then the run ends."""
    num_threads: int = 2
    """Threads of each process."""
    num_workers: int | None = None
    """Data-loader workers of each process; None: on a GPU the cores per GPU less one, at most 16, on a CPU one."""
    image_python: str = "/app/.venv/bin/python"
    """The Python inside the container image."""
    max_jobs: int = 100
    """The most jobs that may wait or run in a cluster at once."""
    sync_batchnorm: str = "torch"
    """Implementation of synchronized BatchNorm: `torch`, or `apex` on GPUs (no bf16; copies channels-last inputs)."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, a third slower."""
    compile_backend: str = ""
    """Backend of torch.compile for the network, e.g. `inductor`; empty does not compile."""
    cudnn_benchmark: bool = True
    """On a GPU, let cuDNN time its algorithms for each new shape. Off where images have many sizes (the detectors)."""
    deterministic: bool = False
    """Take only deterministic algorithms: a repeated run is equal to the bit, on a GPU too, and slower."""
    slurm: Slurm = field(default_factory=Slurm)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)


@dataclass
class Logging:
    """Which metrics a run logs, and how often."""

    every_steps: int = 10
    """Steps between two points of metrics.jsonl and W&B; in a pretraining, a fifth of an epoch (or ten) at most: the
    collapse detector sees these points."""
    wandb: bool = True
    wandb_group: str = ""
    """Group of the run in W&B; empty is the scale's name."""


@dataclass
class Checkpointing:
    """How often a run saves its state. A resumed run computes the same numbers as an uninterrupted one."""

    save_every_seconds: float = 300.0
    sync_every_steps: int = 10
    """Steps between two collectives in which several ranks agree to save, or to stop when preempted."""


@dataclass
class Collapse:
    """When a run counts as collapsed: the detector starts after `patience_epochs`, then does `stop` or `warn`."""

    patience_epochs: float = MISSING
    on_collapse: str = "stop"


ABSENT = "absent"
"""Source and layout of a dataset that a data config leaves out: a plan says so, and does what needs it not."""


@dataclass
class Dataset:
    """One dataset: its origin, and its folders below `paths.data_root`."""

    name: str = MISSING
    source: str = MISSING
    """Which images these are, e.g. `ILSVRC2012`; runs on other images get other names by it."""
    layout: str = MISSING
    """`folders`, `shards`, `voc` or `coco`."""
    root: str = MISSING
    train: str = MISSING
    """Name of the training split."""
    val: str = MISSING
    """Name of the split that metrics are measured on."""
    extra_train_root: str | None = None
    """A second folder of the same layout, whose training split is added to the first."""


@dataclass
class DataCatalog:
    """The datasets that the paper's tables need, as one machine stores them."""

    name: str = MISSING
    imagenet: Dataset = field(default_factory=Dataset)
    places205: Dataset = field(default_factory=Dataset)
    inat18: Dataset = field(default_factory=Dataset)
    voc07: Dataset = field(default_factory=Dataset)
    voc0712: Dataset = field(default_factory=Dataset)
    coco17: Dataset = field(default_factory=Dataset)


@dataclass
class View:
    """One kind of crop: `num` random resized crops of `size_px` x `size_px`.

    `scale` is the range of each crop's area as a fraction of the image's, as in RandomResizedCrop.
    """

    num: int = MISSING
    size_px: int = MISSING
    scale: list[float] = MISSING
    cell_share: float | None = None
    """If set, the crops are patches of a jigsaw: one random crop is divided into a square of `num` cells, and a random
    part of each, with this share of its side, becomes a crop; in random order."""


@dataclass
class Augment:
    """Flip, colour and blur of every crop (A.2)."""

    flip_probability: float = 0.5
    color_jitter: list[float] = MISSING
    """Strength of brightness, contrast, saturation and hue, as in torchvision's ColorJitter."""
    color_jitter_probability: float = MISSING
    grayscale_probability: float = MISSING
    blur_probability: float = MISSING
    blur_sigma_px: list[float] = MISSING
    """Range of the Gaussian blur's standard deviation."""


@dataclass
class Normalize:
    """Mean and standard deviation per colour channel, for pixels in [0, 1]."""

    mean: list[float] = MISSING
    std: list[float] = MISSING


@dataclass
class Crops:
    """The multi-crop augmentation of a pretraining (A.2)."""

    name: str = MISSING
    views: list[View] = MISSING
    augment: Augment = field(default_factory=Augment)
    jpeg_decoder: str | None = None
    """`nvjpeg` decodes JPEG files and cuts crops on the GPU; pixels differ by rounding. None decodes on the CPU."""


@dataclass
class Network:
    """The trunk, a ResNet `width` times as wide, and its projection head."""

    width: float = MISSING
    depth: int | None = None
    """Layers of the trunk, a key of `models.networks.resnet.BLOCKS`; None is 50."""
    stem: str | None = None
    """First layers of the trunk, a key of `models.networks.resnet.STEMS`; None is 7x7."""
    head_hidden_dim: int | None = MISSING
    """Hidden units of the projection head; None makes it one linear layer."""
    head_batchnorm: bool = True
    embedding_dim: int = 128
    batchnorm_group_size: int | None = None
    """Number of images that share BatchNorm statistics in training; None is the whole batch."""
    architecture: str | None = None
    """In place of the ResNet, another network of Table 2, a key of `models.networks.architectures.ARCHITECTURES`. Its
    parameters are counted; only CMC's pair is trained."""


@dataclass
class Optimizer:
    """SGD with momentum and LARC; the learning rate warms up and then follows a cosine, per iteration (A.1)."""

    lr: float = MISSING
    final_lr: float = MISSING
    milestones: list[float] | None = None
    """Replace the cosine: fractions of the epochs at which the rate falls by a constant factor, down to `final_lr`."""
    warmup_epochs: float = MISSING
    warmup_start_lr: float = MISSING
    restart_epoch: int | None = None
    """The epoch from which the schedule, warm-up included, is run again; None runs it once."""
    momentum: float = 0.9
    weight_decay: float = 1e-6
    vector_weight_decay: float | None = None
    """Weight decay of vectors, i.e. of BatchNorm and biases; None: as of all weights. Not with LARC."""
    trust_coefficient: float | None = 0.001
    """LARC's trust coefficient; None is plain SGD."""


@dataclass
class Pretrain:
    """One pretraining run. `method` is checked against its dataclass in `models/methods/` when the run starts.

    `scale` is the scale's table while Hydra composes, and its name in the composed config.
    """

    kind: str = "pretrain"
    name: str = MISSING
    seed: int = 0
    scale: Any = MISSING
    data: DataCatalog = field(default_factory=DataCatalog)
    dataset: Any = MISSING
    crops: Crops = field(default_factory=Crops)
    normalize: Normalize = field(default_factory=Normalize)
    network: Network = field(default_factory=Network)
    method: Any = MISSING
    optimizer: Optimizer = field(default_factory=Optimizer)
    epochs: int = MISSING
    batch_size: int = MISSING
    """Images per step, over all processes."""
    precision: str = MISSING
    initial_loss_scale: float | None = None
    """What the loss scale of fp16 starts with; null: torch's 65,536. A small network may overflow there for a while."""
    on_bad_image: str = "stop"
    """What to do with an unreadable image: `stop`, or `skip` it and count it in the result."""
    collapse: Collapse = field(default_factory=Collapse)
    paths: Paths = field(default_factory=Paths)
    cluster: Cluster = field(default_factory=Cluster)
    logging: Logging = field(default_factory=Logging)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)


@dataclass
class Measure(Pretrain):
    """One measurement of a pretraining's network and step, without images.

    `measurement` is checked against its dataclass in `reproduce/measure.py` when the run starts.
    """

    kind: str = "measure"
    measurement: Any = MISSING
    metrics: list[str] = field(default_factory=list)
    """What the measurement reports: names that a table's column may have."""


@dataclass
class Evaluate:
    """One evaluation of one checkpoint. `protocol` is checked against its dataclass in `evals/` when the run starts.

    `scale` is the scale's table while Hydra composes, and its name in the composed config.
    """

    kind: str = "evaluate"
    name: str = MISSING
    seed: int = 0
    scale: Any = MISSING
    data: DataCatalog = field(default_factory=DataCatalog)
    dataset: Any = MISSING
    checkpoint: str = MISSING
    """What to evaluate: a run_id of the same scale, a file, or `released:NAME` (models/zoo/released.yaml)."""
    depth: int | None = None
    """Layers of the trunks that are trained at this scale, as `network.depth`."""
    stem: str | None = None
    """Their first layers, as `network.stem`."""
    protocol: Any = MISSING
    metrics: list[str] = field(default_factory=list)
    """What the evaluation reports: names that a table's column may have."""
    normalize: Normalize = field(default_factory=Normalize)
    precision: str = MISSING
    on_bad_image: str = "stop"
    """What to do with an unreadable image: `stop`, or `skip` it and count it in the result."""
    paths: Paths = field(default_factory=Paths)
    cluster: Cluster = field(default_factory=Cluster)
    logging: Logging = field(default_factory=Logging)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)


SCHEMAS: dict[str, type] = {"pretrain": Pretrain, "evaluate": Evaluate, "measure": Measure}
"""By the kind of run."""
for _kind, _schema in SCHEMAS.items():
    ConfigStore.instance().store(name=f"{_kind}_schema", node=_schema)
