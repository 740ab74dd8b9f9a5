"""A trained network as a folder: weights, their moving average, and all that is needed to use them.

    weights.safetensors  ema.safetensors (if it differs)  bundle.json

`bundle.json` holds the network's kind and configuration, the noise schedule, what is predicted, the CLIP it was
trained with, and the sha256 of both weight files; `hash` is the sha256 of all that. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast, final, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_core.denoiser import Network, NetworkDenoiser
from diffusion_core.errors import InvalidBundle, InvalidSchedule
from diffusion_core.networks.registry import NetworkConfig, NetworkKind, config_from, kind_of, network_kind
from diffusion_core.prediction import Parameterization
from diffusion_core.schedule import NoiseSchedule

FORMAT_VERSION: Final = 1
"""Of `bundle.json`; others are refused."""
WEIGHTS: Final = "weights.safetensors"
EMA: Final = "ema.safetensors"
MANIFEST: Final = "bundle.json"


@final
@dataclass(frozen=True, eq=False)
class ModelBundle:
    """What `load` found in a folder, verified.

    Attributes:
        folder: where it lies.
        kind: of the network.
        config: of the network.
        schedule: that it was trained with.
        parameterization: what it predicts; None: it is no denoiser.
        clip: identity of the CLIP whose embeddings it reads, opaque to the core; None: it reads none.
        hash: sha256 of everything above but the folder, and of the weights.
    """

    folder: Path
    kind: str
    config: NetworkConfig
    schedule: NoiseSchedule
    parameterization: Parameterization | None
    clip: Mapping[str, Any] | None
    hash: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of data."""
        return tuple(self.config.shape)

    @property
    def learned_variance(self) -> bool:
        """Whether the network's output has twice the channels."""
        return bool(getattr(self.config, "learned_variance", False))

    @classmethod
    def save(
        cls,
        folder: Path | str,
        config: NetworkConfig,
        weights: Mapping[str, Tensor] | Path,
        *,
        schedule: NoiseSchedule,
        parameterization: Parameterization | None = None,
        ema: Mapping[str, Tensor] | None = None,
        clip: Mapping[str, Any] | None = None,
    ) -> ModelBundle:
        """Writes a bundle under a temporary name, and puts it in place when it is whole.

        Args:
            folder: to create, or replace.
            config: of the network; its class says the kind.
            weights: `network.state_dict()`, whole tensors; or a safetensors file that holds them, which is linked
                where the file system can, not copied. Such a bundle has no averaged weights of its own.
            schedule: that the network was trained with.
            parameterization: what it predicts; None for a classifier.
            ema: `EMA.weights(network)`; None: the weights once more.
            clip: identity of the CLIP, plain JSON values.

        Raises:
            InvalidBundle: weights that are not those of such a network.
        """
        folder, kind = Path(folder), kind_of(config)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            partial = Path(temporary) / "bundle"
            partial.mkdir()
            if isinstance(weights, Path):
                link_or_copy(weights, partial / WEIGHTS)
                _check_tensors(kind, config, _shapes(partial / WEIGHTS), WEIGHTS)
            else:
                for name, tensors in ((WEIGHTS, weights), (EMA, weights if ema is None else ema)):
                    _write(kind, config, tensors, partial / name)
            manifest = {
                "format_version": FORMAT_VERSION,
                "kind": kind.name,
                "config": asdict(cast(Any, config)),
                "schedule": schedule.to_config(),
                "parameterization": parameterization,
                "shape": list(config.shape),
                "clip": None if clip is None else dict(clip),
                "files": {name: _sha256(partial / name) for name in (WEIGHTS, EMA) if (partial / name).exists()},
            }
            text = json.dumps({**manifest, "hash": _hash(manifest)}, indent=1, sort_keys=True)
            (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(Path(temporary) / "replaced")
            partial.rename(folder)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path | str) -> ModelBundle:
        """Reads and verifies a bundle; the weights stay on disk until a network is asked for.

        Raises:
            InvalidBundle: a missing file, an unknown format version or kind, a hash that does not fit, or a tensor
                that the network does not have in that shape.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name, wanted in manifest["files"].items():
            if not (folder / name).is_file():
                raise InvalidBundle(f"{folder} has no {name}: copy the whole folder")
            if _sha256(folder / name) != wanted:
                raise InvalidBundle(f"{folder / name} is not the file that {MANIFEST} describes: its sha256 differs")
        kind = network_kind(manifest["kind"])
        config = config_from(kind, manifest["config"])
        for name in manifest["files"]:
            _check_tensors(kind, config, _shapes(folder / name), name)
        try:
            schedule = NoiseSchedule.from_config(manifest["schedule"])
        except InvalidSchedule as error:
            raise InvalidBundle(f"{folder / MANIFEST} holds no noise schedule: {error}") from None
        return cls(
            folder, kind.name, config, schedule, manifest["parameterization"], manifest["clip"], manifest["hash"]
        )

    def network(self, *, ema: bool = True, device: torch.device | str | None = None) -> nn.Module:
        """Builds the network, in evaluation mode.

        Args:
            ema: whether it gets the averaged weights.
            device: where to.
        """
        # The initial weights are overwritten: they must not advance the caller's random state.
        with torch.random.fork_rng(devices=[]):
            network = network_kind(self.kind).build(self.config)
        averaged = ema and (self.folder / EMA).is_file()
        network.load_state_dict(load_file(self.folder / (EMA if averaged else WEIGHTS)))
        return network.to(device).eval().requires_grad_(False)

    def denoiser(
        self,
        *,
        ema: bool = True,
        device: torch.device | str | None = None,
        buckets: Sequence[int] = (),
        autocast: torch.dtype | None = None,
    ) -> NetworkDenoiser:
        """Builds the network and reads its output as it was trained; arguments as of `NetworkDenoiser`.

        Raises:
            InvalidBundle: the network predicts nothing: it is a classifier.
        """
        if self.parameterization is None:
            raise InvalidBundle(f"{self.folder} holds a {self.kind}, which is no denoiser: call network()")
        return NetworkDenoiser(
            cast(Network, self.network(ema=ema, device=device)),
            self.schedule,
            self.parameterization,
            learned_variance=self.learned_variance,
            buckets=buckets,
            autocast=autocast,
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InvalidBundle(f"{folder} has no {MANIFEST}: this is no model bundle")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidBundle(f"{path} is no JSON: {error}") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise InvalidBundle(f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}: update it")
    claimed = manifest.get("hash")
    if _hash({key: value for key, value in manifest.items() if key != "hash"}) != claimed:
        raise InvalidBundle(f"{path} was changed after it was written: its hash is not {claimed}")
    if set(manifest["files"]) not in ({WEIGHTS, EMA}, {WEIGHTS}) or manifest["parameterization"] not in (
        None,
        *get_args(Parameterization),
    ):
        raise InvalidBundle(f"{path} describes other files than {WEIGHTS} and {EMA}, or an unknown parameterization")
    return cast("dict[str, Any]", manifest)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """A second name of the same file on the same file system, else a copy: large weights are stored once."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write(kind: NetworkKind, config: NetworkConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    _check_tensors(kind, config, {key: tuple(value.shape) for key, value in tensors.items()}, path.name)
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, path)


def _check_tensors(kind: NetworkKind, config: NetworkConfig, found: Mapping[str, tuple[int, ...]], file: str) -> None:
    """Compares names and shapes with the network's own, without making the network's tensors."""
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in kind.build(config).state_dict().items()}
    for name in {**wanted, **found}:
        if wanted.get(name) != found.get(name):
            raise InvalidBundle(
                f"{file}: found {name} of shape {found.get(name)}, a {kind.name} of this configuration has "
                f"{wanted.get(name)}: weights and configuration belong to different models"
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidBundle(f"{path} is no safetensors file: {error}") from None


def _hash(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
