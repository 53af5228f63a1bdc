"""Batches: which windows a step trains on, and their tokens and hidden states on the device."""

from collections.abc import Callable

import torch
from torch import Tensor

from dllm_kernels.model.encoder import Encoder
from dllm_kernels.training.hidden import DTYPE, Cache, HiddenStates
from dllm_kernels.training.recipe import Batch
from dllm_kernels.training.settings import DataSettings
from dllm_kernels.training.windows import Windows
from dllm_kernels.utils.device import free_memory


class Source:
    """The windows of one part of the data, with their hidden states and prompts.

    Args:
        windows: on disk.
        encoder: the frozen language model; its device is the batches'.
        data: says how much of memory hidden states may take.
        cache: the run's, on disk.
        part, wait, progress: as of HiddenStates.
    """

    def __init__(
        self,
        windows: Windows,
        encoder: Encoder,
        data: DataSettings,
        cache: Cache,
        part: tuple[int, int] = (0, 1),
        wait: Callable[[], None] = lambda: None,
        progress: Callable[[], None] = lambda: None,
    ):
        self.windows, self.device = windows, encoder.device
        width = windows.rows.shape[1] - 2
        # The rows of all parts are weighed together, so that prompts do not find the memory taken.
        fits = len(windows) * width * encoder.hidden_dim * DTYPE.itemsize <= data.memory_share * free_memory(encoder.device)
        memory = 2**62 if fits else 0
        more = (encoder, cache, memory, part, wait, progress)
        self.hidden = HiddenStates(windows.tokens, len(windows), *more)
        self.prompts = HiddenStates(windows.prompts, len(windows), *more) if width > windows.seq_len else None
        self._resident = [x.to(encoder.device) for x in self._tokens(slice(0, len(windows)))] if fits else None

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, index: Tensor) -> Batch:
        """The windows `index` [B], which lies on the device."""
        if self._resident is not None:
            tokens, lengths, prompt_lengths = (x[index] for x in self._resident)
        else:
            tokens, lengths, prompt_lengths = (x.to(self.device, non_blocking=True) for x in self._tokens(index))
        tokens = tokens.long()
        mask = torch.arange(tokens.shape[1], device=self.device) < lengths.unsqueeze(1)
        if self.prompts is None:
            return Batch(tokens, mask, self.hidden[index])
        context = self.prompts[index]
        context_mask = torch.arange(context.shape[1], device=self.device) < prompt_lengths.unsqueeze(1)
        return Batch(tokens, mask, self.hidden[index], context, context_mask)

    def _tokens(self, index: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T] int32, their number and that of the prompt's [B] int32."""
        rows = self.windows.rows[index if isinstance(index, slice) else index.cpu().numpy()]
        rows = torch.from_numpy(rows.astype("int32"))
        return rows[:, 2 : 2 + self.windows.seq_len].contiguous(), rows[:, 0], rows[:, 1]


class Order:
    """The order of the windows: a new permutation an epoch, by the seed; sample n of the run is place n of their sequence.

    Args:
        count: windows.
        seed: of the run.
        device: where the indices are wanted.
    """

    def __init__(self, count: int, seed: int, device: torch.device):
        self._count, self._seed, self._device = count, seed, device
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, first: int, count: int) -> Tensor:
        """The windows [count] int64 of samples `first` to `first + count`."""
        places = []
        while count:
            epoch, start = divmod(first, self._count)
            taken = min(count, self._count - start)
            places.append(self._epoch(epoch)[start : start + taken])
            first, count = first + taken, count - taken
        return torch.cat(places)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # A batch may begin in the epoch before; older ones are over.
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            generator = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch) % 2**63)
            self._epochs[epoch] = torch.randperm(self._count, generator=generator).to(self._device)
        return self._epochs[epoch]
