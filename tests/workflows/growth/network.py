"""A network kind: residual convolutions at one resolution."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.workflows.growth.edits import above, below, new_file

NAME = "network"
MOST_FILES = 4
EDITS = (
    new_file(
        "diffusion_core/networks/resnet.py",
        '''"""Residual convolutions at one resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, final

from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.condition import Condition
from diffusion_core.networks.attention import zeroed
from diffusion_core.networks.convolution import convolution
from diffusion_core.networks.embedding import ConditionEmbedding, LevelEmbedding
from diffusion_core.networks.patches import check_shape
from diffusion_core.networks.unet import ResidualBlock
from diffusion_core.types import Data, Rows


@dataclass(frozen=True)
class ResNetConfig:
    """The size of a `ResNet`.

    Attributes:
        shape: of one row, `(c, *axes)`.
        width: channels of the blocks.
        depth: number of blocks.
        token_dim: width of `Condition.tokens`, which are not read.
        pooled_dim: width of `Condition.pooled`; None: it is not read.
        num_classes: labels 0 .. num_classes - 1; None: they are not read.
    """

    shape: tuple[int, ...]
    width: int = 64
    depth: int = 4
    token_dim: int | None = None
    pooled_dim: int | None = None
    num_classes: int | None = None


@final
class ResNet(nn.Module):
    """Residual blocks that level and condition modulate; starts at zero output.

    Args:
        config: its size.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config, rank, width = config, len(config.shape) - 1, config.width
        self.level = LevelEmbedding(width)
        self.condition = ConditionEmbedding(width, None, config.pooled_dim, config.num_classes)
        self.first = convolution(rank, config.shape[0], width)
        self.blocks = nn.ModuleList(
            ResidualBlock(rank, width, width, width, num_heads=None, text_width=None) for _ in range(config.depth)
        )
        self.project = zeroed(convolution(rank, width, config.shape[0]))

    def forward(self, x: Data, level: Rows, condition: Condition | None = None) -> Data:
        """Predicts x0, eps or v, as it was trained."""
        check_shape(x, self.config.shape)
        asked = Condition.null(len(x), x.device) if condition is None else condition
        vector = self.level(level)
        vector = functional.silu(vector + self.condition.vector(asked, vector))
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, vector)
        return cast(Tensor, self.project(functional.silu(hidden)))
''',
    ),
    above(
        "diffusion_core/networks/registry.py",
        "from diffusion_core.networks.unet import",
        "from diffusion_core.networks.resnet import ResNet, ResNetConfig\n",
    ),
    below(
        "diffusion_core/networks/registry.py",
        """        NetworkKind("unet", UNetConfig, UNet),
""",
        """        NetworkKind("resnet", ResNetConfig, ResNet),
""",
    ),
    below(
        "workflows/options/networks.py",
        """        NetworkOption("mlp", "vectors", {"width": "width", "depth": "depth"}),
""",
        """        NetworkOption("resnet", "pictures", {"width": "width", "depth": "depth"}),
""",
    ),
)


def check(package: Path, folder: Path) -> None:
    """The configuration takes the kind, training makes and moves it, and a bundle and a package hold it."""
    import torch

    from diffusion_core import Condition, ModelBundle, NetworkDenoiser, NoiseSchedule, training_draws, training_loss
    from diffusion_core.networks.registry import kind_of
    from workflows.config.load import load_config
    from workflows.data.rows import rows_of
    from workflows.model.model import ModelPackage
    from workflows.package.files import CLIP, PackageCard, assemble
    from workflows.train.networks import denoiser_network

    section = load_config("digits", ["denoiser.network.kind=resnet", "denoiser.network.depth=2"]).denoiser.network
    pooled = ModelPackage.load(package).clip.text.encode(["a"]).pooled
    manifest = SimpleNamespace(clip={"width": 16, "embed_dim": pooled.shape[1]})
    cache: Any = SimpleNamespace(shape=(1, 8, 8), rows=rows_of((1, 8, 8)), manifest=manifest)
    config = denoiser_network(section, cache)
    assert (config.depth, config.width) == (2, section.width)

    network, schedule = kind_of(config).build(config), NoiseSchedule.cosine(100)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    x0 = torch.ones(8, 1, 8, 8)
    draws = training_draws(seed=0, sample_numbers=range(8), shape=(1, 8, 8), num_levels=100, dropout=0.1)
    losses = []
    for _ in range(20):
        learner = NetworkDenoiser(network, schedule, "v")
        loss = training_loss(learner, x0, draws, Condition.of(pooled=pooled.repeat(8, 1)), parameterization="v").mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]

    bundle = folder / "bundle"
    ModelBundle.save(
        bundle, config, network.state_dict(), schedule=schedule, parameterization="v", clip={"model": "tiny"}
    )
    assert ModelBundle.load(bundle).kind == "resnet"
    card = PackageCard.load(package)
    assemble(folder / "package", card, denoiser=bundle, classifier=None, clip=package / CLIP)
    drawn, other = (ModelPackage.load(place) for place in (folder / "package", package))
    pictures = [model.sample(model.condition(["a handwritten seven"], "direct"), seeds=[7]) for model in (drawn, other)]
    assert pictures[0].shape == (1, 1, 8, 8)
    assert not torch.equal(*pictures)
