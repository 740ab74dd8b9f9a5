"""An imported model behind the service: requests, edits on latents, previews, and decoding in a stage of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffusion_core.engine import StepEngine
from diffusion_core.row import Trajectory
from tests.workflows.diffusers_io.conftest import Pair
from workflows.data.pixels import to_data
from workflows.errors import InvalidRequest
from workflows.model.latents import fit_preview
from workflows.model.model import ModelPackage
from workflows.package.files import AUTOENCODER
from workflows.serve.replica.decoding import Decoder
from workflows.serve.replica.rows import channels_last, preview_pixels, start_rows
from workflows.serve.request.capabilities import ModelCapabilities
from workflows.serve.request.messages import InitImage
from workflows.serve.request.resolve import resolve
from workflows.serve.request.schema import EditRequest, GenerationRequest, PictureRequest
from workflows.towers.autoencoder import Autoencoder

MakePair = Callable[[str], Pair]


def capabilities_of(package: ModelPackage) -> ModelCapabilities:
    _, height, width = package.rows.shape
    return ModelCapabilities(
        model="sd",
        version="1",
        size=(width, height),
        class_names=package.class_names,
        guidance=package.guidance,
        guidance_settings=package.defaults.guidance,
        default_steps=5,
        max_steps=1000,
        conditions=package.conditions,
    )


def rows_of(package: ModelPackage, request: PictureRequest, init: InitImage | None = None) -> list[Trajectory]:
    resolved = resolve(request, capabilities_of(package), inpainted=init is not None and init.keep is not None)
    texts = [package.clip.text.encode([text]) for text in resolved.texts]
    return start_rows(package, resolved, texts, init)


def finished(package: ModelPackage, rows: list[Trajectory]) -> list[Tensor]:
    engine, found = StepEngine(package.denoiser, package.shape, max_rows=4), {}
    names = [engine.submit(row) for row in rows]
    while len(engine):
        found |= {outcome.row_id: outcome.x0 for outcome in engine.tick()}
    engine.check()
    samples = [found[name] for name in names]
    return [sample for sample in samples if sample is not None]


def asked(**values: object) -> GenerationRequest:
    return GenerationRequest.model_validate({"prompt": "a dog", "num_inference_steps": 4, "seed": 1} | values)


@pytest.mark.slow
def test_requests_of_all_kinds_share_the_engine(pair: MakePair) -> None:
    package = pair("sd leading-offset").package
    requests = [
        asked(),
        asked(sampler="dpm_solver", num_inference_steps=6, guidance_scale=3.0, negative_prompt="a cat", seed=5),
        asked(guidance="direct", n=2),
        asked(guidance="none", prompt=""),
    ]
    rows = [row for request in requests for row in rows_of(package, request)]
    together, alone = finished(package, rows), [finished(package, [row])[0] for row in rows]
    assert len(together) == 5
    for one, other in zip(together, alone, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-4
    assert float((together[0] - together[1]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("name", "fields", "param"),
    [
        ("dit", {"prompt": "", "guidance": "classifier_free"}, "label"),
        ("ddpm", {"prompt": "", "guidance": "direct"}, "guidance"),
        ("sd leading-offset", {"prompt": "a dog", "guidance": "clip"}, "guidance"),
    ],
)
def test_what_a_model_cannot_read_is_refused(pair: MakePair, name: str, fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(asked(**fields), capabilities_of(pair(name).package))
    assert caught.value.param == param


def test_a_prompt_that_a_model_cannot_read_is_told(pair: MakePair) -> None:
    capabilities = capabilities_of(pair("dit").package)
    fields: dict[str, object] = {"label": 1, "guidance": "classifier_free"}
    assert "prompt" in resolve(asked(prompt="a dog", **fields), capabilities).settings.without_effect
    assert "prompt" not in resolve(asked(prompt="", **fields), capabilities).settings.without_effect


def test_an_edit_keeps_the_latents_that_are_known(pair: MakePair) -> None:
    """Where a latent's whole square of pixels is kept, the sample is the picture's own latent.

    But for a little noise: this checkpoint's last step goes to alpha_bar_1, not to clean data.
    """
    package = pair("sd leading-offset").package
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    keep = np.zeros((16, 16), np.bool_)
    keep[:, :7] = True
    request = EditRequest.model_validate({"prompt": "a dog", "num_inference_steps": 4, "seed": 1})
    (sample,) = finished(package, rows_of(package, request, InitImage(pixels, keep)))
    x0 = package.codec.encode((torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0)[None])[0]
    left = 3.0 * float(1.0 - package.schedule.alpha_bar[1]) ** 0.5
    assert float((sample - x0)[:, :, :3].abs().max()) < left
    assert float((sample - x0)[:, :, 3].abs().max()) > 10 * left, "a square with one open pixel is drawn anew"


def test_a_weaker_edit_stays_nearer(pair: MakePair) -> None:
    package = pair("sd leading-offset").package
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    x0 = package.codec.encode(to_data(pixels.transpose(2, 0, 1))[None])[0]
    far = []
    for strength in (0.2, 1.0):
        values = {"prompt": "a dog", "num_inference_steps": 10, "seed": 1, "strength": strength}
        (sample,) = finished(package, rows_of(package, EditRequest.model_validate(values), InitImage(pixels, None)))
        far.append(float((sample - x0).norm()))
    assert far[0] < 0.7 * far[1]


def test_decoding_is_a_stage_of_its_own(pair: MakePair) -> None:
    """Samples of several requests, more than fit in one batch, come out as they would alone; a fault is told."""
    package = pair("sd leading-offset").package
    states = list(torch.randn(7, *package.shape, generator=torch.Generator().manual_seed(0)))

    async def together() -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
        decoder = Decoder(package, max_rows=3)
        return list(await asyncio.gather(decoder.decode(states[:1]), decoder.decode(states[1:])))

    found = np.concatenate(asyncio.run(together()))
    wanted = channels_last(package.drawn(torch.stack(states)))
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
    assert wanted.std() > 10, "flat pictures would prove nothing"

    async def spoilt() -> None:
        await Decoder(package).decode([torch.zeros(1, 8, 8)])

    with pytest.raises(RuntimeError):
        asyncio.run(spoilt())


def test_previews_tell_what_decoding_would(pair: MakePair) -> None:
    """The linear map explains latents that it was not fitted on, and costs no decoder."""
    package = pair("sd leading-offset").package
    autoencoder = Autoencoder.load(package.folder / AUTOENCODER)
    smooth = functional.interpolate(torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(9)), 8)
    decoded = functional.avg_pool2d(autoencoder.decode(smooth).clamp(-1, 1), 2)
    guess = functional.avg_pool2d(package.codec.preview(smooth), 2)
    unexplained = float((guess - decoded).square().mean() / decoded.var())
    assert unexplained < 0.8, "random weights are far from linear; trained ones are near"
    assert torch.equal(fit_preview(autoencoder, 4), fit_preview(autoencoder, 4)), "fitted the same every time"
    assert preview_pixels(package, list(smooth[:2])).shape == (2, 16, 16, 3)
