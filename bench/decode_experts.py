"""Steps of a population through a mixture of experts: those that tokens chose, and all of them.

A Llama of 57 million parameters with 32 experts, 4 for every token, rank 1; every member writes
from one prompt. `all` are the same steps with every expert computed for every token. `pure` are as
many rows of the unperturbed weights with the experts that they chose.

    python -m bench.decode_experts

On a CPU seconds are those the process computed, on one core: other processes take none of them.
"""

import dataclasses
import sys
from typing import Any
from unittest import mock

import jax

from bench import decode
from springroll.bench import measure
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import DecoderConfig

SHAPE = dataclasses.replace(decode.SHAPE, experts=32, top_k=4, ffn=220)


def run(members: int = 64, config: DecoderConfig = SHAPE, repeats: int = 5) -> dict[str, Any]:
    """Tokens per second of `members` members with a prompt each."""
    model = decoder(config)
    params = model.init(jax.random.key(0))
    asked, _ = decode.ask(params, members)
    steps = {
        "chosen": decode.loop(model, params, asked, "once"),
        "all": decode.loop(model, params, asked, "once"),
        "pure": decode.loop(model, params, asked, "nothing"),
    }
    module = sys.modules[Decoder.__module__]
    with mock.patch.object(module, "chosen_are_less", lambda config, tokens: False):
        jax.block_until_ready(steps["all"]())  # compiled here
    rate = {
        name: members * decode.STEPS / each for name, each in decode.seconds(steps, repeats).items()
    }
    return measure.record(
        "decode_experts",
        ours=rate["chosen"],
        baseline=rate["all"],
        ratio=rate["chosen"] / rate["all"],
        unit="tokens per second",
        over_pure=rate["chosen"] / rate["pure"],
        members=members,
        parameters=config.parameters,
        target="ratio > 1",
    )


def main() -> None:
    decode.main(run)


if __name__ == "__main__":
    main()
