"""What an autoencoder has to be better than: the means of neighbouring values, which need no training.

They are weights of the same network, so that whatever holds for an autoencoder's holds for them: the bytes of the code,
how it travels, and what is checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.autoencoder import SLOPE, Autoencoder

EVEN, ODD = 1, 2
"""The taps of a kernel that see, or make, the even and the odd of two neighbouring positions."""

Terms = Sequence[tuple[int, int, float]]
"""What a number is the sum of: numbers of the layer before, each at a tap and with a factor."""


def neighbour_means(architecture: Architecture) -> Autoencoder | None:
    """Return an autoencoder whose code is the means of neighbouring values, and which decodes each as all of them.

    A code has ``channels`` numbers for ``stride`` values: so many values have one mean, four with the paper's widths.
    None where the network cannot do it: the gather variant, whose decoder adds the innovation to what it replaces;
    widths that do not divide the stride, or are too small, or leave every value a number of its own.
    """
    down, channels = len(architecture.encoder) - 1, architecture.channels
    splits = channels.bit_length() - 1
    numbers = [1] * (down - splits) + [2**split for split in range(1, splits + 1)]
    wide = all(width >= 2 * n for width, n in zip(architecture.encoder, numbers, strict=False))
    # the decoder makes the numbers of every layer of the encoder, backwards
    wide = wide and all(w >= 2 * n for w, n in zip(architecture.decoder, [*numbers[-2::-1], 1], strict=True))
    if architecture.variant != "allreduce" or channels != 2**splits or splits >= down or not wide:
        return None
    model = Autoencoder(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        before, paired = 1, False
        for layer, count in zip(model.encoder, numbers, strict=True):
            for n in range(count):
                if count == before:
                    terms: Terms = [(n, EVEN, 0.5), (n, ODD, 0.5)]
                else:
                    terms = [(n % before, EVEN if n < before else ODD, 1.0)]
                _put(_weight(layer), n, terms, paired, pairs=True)
            before, paired = count, True
        for n in range(channels):
            _put(model.code.weight, n, [(n, 0, 1.0)], paired, pairs=False)
        paired = False
        for layer, count in zip(model.decoder, [*numbers[-2::-1], 1], strict=True):
            for n in range(count):
                odd = n if count == before else n + count
                _put(_weight(layer).transpose(0, 1), n, [(n, EVEN, 1.0), (odd, ODD, 1.0)], paired, pairs=True)
            before, paired = count, True
        _put(model.out.weight, 0, [(0, 0, 1.0)], paired, pairs=False)
    return model


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _put(weight: torch.Tensor, number: int, terms: Terms, paired: bool, *, pairs: bool) -> None:
    """Write one number of a layer into its weights, ``(out, in, taps)``.

    ``pairs``: as a pair of channels, x and -x, from which the next layer gets x back behind the leaky ReLU: the
    difference of the two is ``(1 + SLOPE) x``. ``paired``: the layer before has written pairs.
    """
    for source, tap, factor in terms:
        inputs = [(2 * source, factor / (1 + SLOPE)), (2 * source + 1, -factor / (1 + SLOPE))]
        for channel, value in inputs if paired else [(source, factor)]:
            if pairs:
                weight[2 * number, channel, tap] = value
                weight[2 * number + 1, channel, tap] = -value
            else:
                weight[number, channel, tap] = value
