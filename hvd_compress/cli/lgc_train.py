"""``hvd-compress lgc-train``: weights for LGC's autoencoder, from recorded vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hvd_compress.cli.output import Json, console, fail, print_json
from hvd_compress.lgc.architecture import DECODER, ENCODER, VARIANTS

EXIT_STATUS = "Exit status: 0 done; 1 torch or safetensors is missing; 2 wrong usage, or no vectors."


def joined(widths: Sequence[int]) -> str:
    """Return widths as they are given on the command line."""
    return ",".join(map(str, widths))


def lgc_train(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Read the vectors that LGC(record=DIR) wrote to this folder.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Write the weights to this file, for LGC(weights=FILE).")
    ],
    variant: Annotated[str, typer.Option(help=f"Train for this variant, {' or '.join(VARIANTS)}.")] = VARIANTS[0],
    encoder: Annotated[str, typer.Option(help="Give the layers of the encoder these numbers of channels.")] = joined(
        ENCODER
    ),
    decoder: Annotated[str, typer.Option(help="Give the layers of the decoder these numbers of channels.")] = joined(
        DECODER
    ),
    innovation: Annotated[
        float, typer.Option(help="Send this fraction of the entries as they are (gather variant only).")
    ] = 0.1,
    batches: Annotated[
        int, typer.Option(min=1, help="Train on at most this number of batches; on fewer if the error stops falling.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Draw the initial weights and the batches with this seed.")] = 0,
    json_: Json = False,
) -> None:
    """Train LGC's autoencoder on recorded vectors.

    The command ends with the relative squared error on vectors that were held out, beside that of float16 top-k for
    the same bytes. The variant, the channels and the innovation must be those of the compressor that takes the weights.
    """
    try:
        from hvd_compress.lgc import offline
    except ImportError as error:
        fail(f"{error}: pip install 'hvd-compress[lgc]'", 1)
    try:
        down, up = (tuple(int(width) for width in text.split(",")) for text in (encoder, decoder))
        result = offline.lgc_train(
            folder,
            out,
            variant=variant,
            encoder=down,
            decoder=up,
            innovation=innovation,
            batches=batches,
            seed=seed,
        )
    except (OSError, TypeError, ValueError) as error:
        fail(error)
    if json_:
        print_json(result)
        return
    for key, value in result.items():
        if value not in (None, ""):
            console().print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}", soft_wrap=True)
    console().print(f"weights: {out}", soft_wrap=True)
