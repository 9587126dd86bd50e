"""Which images each training step reads, for any number of workers and ranks.

Every rank derives the same epoch order from `(seed, epoch)`, so a resumed run reads the images that an uninterrupted
one would have read.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.shards import ShardOrder
from reproduce.errors import UserError

EpochOrder = Callable[[int, int, int], np.ndarray]
"""Maps `(num_images, seed, epoch)` to a permutation of the image indices, `(num_images,)`; the same on every rank."""


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator of image `index` in `epoch`, which depends on no worker or rank.

    It is counter-based (Philox), keyed by all three numbers; `index` must be below 2**40.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, (epoch << 40) | index], dtype=np.uint64)))


@lru_cache(maxsize=2)  # the epoch that is being prefetched and the one in progress
def epoch_permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the shuffled image indices of an epoch, `(num_images,)` int64; the same on every rank."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))).permutation(num_images)


def epoch_order_for(images: ImageList, batch_size: int) -> EpochOrder:
    """Return the epoch order to train `images` in: a sequential-read order for shards, a permutation for files."""
    return ShardOrder(images.shard_index, batch_size) if images.shard_index else epoch_permutation


def require_even_shares(batch_size: int, world_size: int) -> None:
    """Raise `UserError` unless every process gets the same number of a batch's images."""
    if batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} can't be shared evenly by {world_size} processes: "
            f"choose a multiple of {world_size}"
        )


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yields this rank's `(epoch, image index)` pairs of each step, from `first_step` to the end of the last epoch.

    A step's global batch is a slice of the epoch's order; ranks take consecutive parts of it. One sampler covers all
    epochs, so that workers start once per run.

    With `drop_last`, the last, incomplete batch of an epoch is dropped. Without, ranks get shares of it that differ by
    one image at most (`batch_at` has all of it). The epoch's first images fill it up to one per rank, as torch's
    DistributedSampler does, and a single image that is left over is dropped, because BatchNorm needs two.

    Raises `UserError` if ranks can't share a batch evenly, or if there are fewer images than one batch holds.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        epochs: int,
        seed: int,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: EpochOrder = epoch_permutation,
        drop_last: bool = True,
    ) -> None:
        require_even_shares(batch_size, world_size)
        left_over = num_images % batch_size
        self.steps_per_epoch = num_images // batch_size + (not drop_last and left_over > 1)
        if epochs and num_images < batch_size:
            raise UserError(
                f"the training set has {num_images} images, fewer than one batch of {batch_size}: "
                "add images or reduce batch_size"
            )
        self.num_images, self.batch_size, self.epochs, self.seed = num_images, batch_size, epochs, seed
        self.first_step, self.rank, self.world_size = first_step, rank, world_size
        self.order = order

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.epochs * self.steps_per_epoch):
            epoch = step // self.steps_per_epoch
            yield [(epoch, int(index)) for index in self.indices_at(step)]

    @property
    def images_per_rank(self) -> int:
        """The most images of a step that a rank gets."""
        return -(-self.batch_size // self.world_size)

    def indices_at(self, step: int) -> np.ndarray:
        """Return the image indices of this rank in any step: `(batch_size / world_size,)` int64 or fewer at the end."""
        return np.array_split(self.batch_at(step), self.world_size)[self.rank]

    def batch_at(self, step: int) -> np.ndarray:
        """Return the image indices of all ranks in any step, `(batch_size,)` int64, or fewer at an epoch's end."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, start = self.order(self.num_images, self.seed, epoch), position * self.batch_size
        batch = order[start : start + self.batch_size]
        return np.concatenate([batch, order[: max(0, self.world_size - len(batch))]])
