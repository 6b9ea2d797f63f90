"""What finds the vectors of an open vocabulary while it is served: by the device, as what computes the layers."""

from kernels.cpu.shared_table import FusedLookup
from mfalcon.backends.choice import AUTO, ON_DEVICE, Choice, choose
from mfalcon.models.base import Ranker
from mfalcon.models.shared_embedding import Lookup


def settle_items(model: Ranker, choice: Choice | None = None) -> None:
    """Tell a model that its weights no longer change (`ItemEmbedding.settle`). choice: of a backend; None for the one
    that is best here. A model that a kernel serves already keeps it where the choice is the reference: the rows are the
    same.
    """
    if model.config.shared is None:
        model.items.settle()
        return
    model.items.settle(_lookup_of(choice or choose(AUTO, model.device, model.dtype)))


def _lookup_of(choice: Choice) -> Lookup | None:
    if choice.name in ON_DEVICE:
        from kernels.gpu.shared_table import shared_rows  # noqa: PLC0415 (triton is an extra)

        return shared_rows
    return None if choice.kernel is None else FusedLookup(choice.kernel)
