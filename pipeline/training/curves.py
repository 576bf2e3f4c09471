"""The curves of a training for TensorBoard, where that is installed (`edgebuild[tensorboard]`).

tensorboard --logdir runs/NAME/tensorboard
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.training.progress import Epoch

FOLDER = "tensorboard"


def writer(folder: Path) -> Callable[[Epoch], None]:
    """Writes each epoch it is given; a training that goes on writes over what came after."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda epoch: None

    begun: list[SummaryWriter] = []

    def write(epoch: Epoch) -> None:
        if not begun:
            begun.append(SummaryWriter(str(folder), purge_step=epoch.epoch))
        for name, value in (
            ("loss/train", epoch.loss),
            ("loss/val", epoch.val_loss),
            ("val/f1_macro", epoch.f1_macro),
            ("val/accuracy", epoch.accuracy),
            ("images_per_s", epoch.images_per_s),
        ):
            begun[0].add_scalar(name, value, epoch.epoch)
        begun[0].flush()

    return write
