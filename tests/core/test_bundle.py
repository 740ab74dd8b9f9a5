"""Model bundles: what is saved is what is loaded, and what is broken is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_core import bundle as module
from diffusion_core.bundle import ModelBundle
from diffusion_core.condition import Condition
from diffusion_core.ema import EMA
from diffusion_core.errors import InvalidBundle
from diffusion_core.networks import (
    MLP,
    DiT,
    DiTConfig,
    MLPConfig,
    NetworkKind,
    NoisyClassifier,
    NoisyClassifierConfig,
    UNet,
    UNetConfig,
    register_network,
)
from diffusion_core.networks import registry as kinds
from diffusion_core.schedule import NoiseSchedule

CLIP = {"model": "tiny", "sha256": "00ff", "context_length": 16}
SCHEDULE = NoiseSchedule.cosine(20)
NETWORKS = [
    DiT(DiTConfig((1, 4, 6), (2, 3), 8, 1, 2, token_dim=3, pooled_dim=5, num_classes=2, learned_variance=True)),
    UNet(UNetConfig((1, 4, 4), 4, (1, 2), num_heads=1, pooled_dim=5)),
    MLP(MLPConfig((3,), 8, 1)),
    NoisyClassifier(NoisyClassifierConfig((1, 4, 4), 2, 8, 1, 2, num_classes=2, embed_dim=5, num_candidates=4)),
]


def saved(folder: Path, network: Any = NETWORKS[0], **options: Any) -> ModelBundle:
    options = {"schedule": SCHEDULE, "parameterization": "v", "clip": CLIP} | options
    return ModelBundle.save(folder, network.config, network.state_dict(), **options)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_round_trip(network: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        averages = {name: value + 1.0 for name, value in network.state_dict().items()}
    written = saved(tmp_path / "bundle", network, ema=averages)
    loaded = ModelBundle.load(tmp_path / "bundle")
    assert (loaded.config, loaded.clip, loaded.parameterization) == (network.config, CLIP, "v")
    assert (loaded.hash, loaded.shape, loaded.kind) == (written.hash, network.config.shape, written.kind)
    assert torch.equal(loaded.schedule.alpha_bar, SCHEDULE.alpha_bar)
    assert loaded.learned_variance == getattr(network.config, "learned_variance", False)
    for ema, wanted in ((False, network.state_dict()), (True, averages)):
        built = loaded.network(ema=ema)
        assert (type(built), built.training) == (type(network), False)
        found = built.state_dict()
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_denoiser_reads_the_network_as_trained(tmp_path: Path) -> None:
    network = DiT(DiTConfig((1, 4, 4), 2, 8, 1, 2, pooled_dim=5, learned_variance=True))
    ema = EMA(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    ema.update(network)
    bundle = saved(tmp_path / "b", network, parameterization="x0", ema=ema.weights(network))
    x, level, condition = torch.randn(2, 1, 4, 4), torch.tensor([3, 20]), Condition.of(pooled=torch.randn(2, 5))
    prediction = bundle.denoiser()(x, level, condition)
    mean, fraction = network(x, level.float(), condition).chunk(2, dim=1)
    assert torch.allclose(prediction.x0, mean, atol=1e-6)
    assert prediction.variance_fraction is not None
    assert torch.allclose(prediction.variance_fraction, (fraction + 1.0) / 2.0, atol=1e-6)


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    bundle = saved(tmp_path / "b")
    before = torch.get_rng_state()
    bundle.network()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    first, again = saved(tmp_path / "a"), saved(tmp_path / "other name")
    assert first.hash == again.hash
    averages = {name: value + 1.0 for name, value in NETWORKS[0].state_dict().items()}
    changes: list[dict[str, Any]] = [
        {"parameterization": "eps"},
        {"schedule": NoiseSchedule.cosine(21)},
        {"clip": CLIP | {"model": "other"}},
        {"ema": averages},
    ]
    hashes = {saved(tmp_path / f"b{i}", **change).hash for i, change in enumerate(changes)}
    assert len(hashes | {first.hash}) == 5


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    saved(tmp_path / "b")
    (tmp_path / "b" / "stray").touch()
    second = saved(tmp_path / "b", parameterization="eps")
    assert ModelBundle.load(tmp_path / "b").hash == second.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "bundle.json",
        "ema.safetensors",
        "weights.safetensors",
    ]


def test_a_failed_save_leaves_the_old_bundle(tmp_path: Path) -> None:
    kept = saved(tmp_path / "b")
    weights = dict(NETWORKS[0].state_dict()) | {"extra": torch.zeros(1)}
    with pytest.raises(InvalidBundle, match="extra"):
        ModelBundle.save(tmp_path / "b", NETWORKS[0].config, weights, schedule=SCHEDULE)
    assert ModelBundle.load(tmp_path / "b").hash == kept.hash
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes bundle.json and signs it again: a faulty writer, not a tampered file."""
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest = {key: value for key, value in (manifest | changes).items() if key != "hash"}
    manifest["hash"] = module._hash(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_rewriting_without_changes_is_accepted(tmp_path: Path) -> None:
    """The negative control of the refusals below: it is the change that is refused, not the rewriting."""
    kept = saved(tmp_path / "b")
    rewrite(tmp_path / "b")
    assert ModelBundle.load(tmp_path / "b").hash == kept.hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, this program reads 1"),
        ({"format_version": None}, "format version None"),
        ({"kind": "perceptron"}, "unknown network kind 'perceptron': wanted one of"),
        ({"kind": "mlp"}, "configuration of network kind 'mlp' does not fit"),
        ({"config": {"shape": [1, 4, 6], "depht": 3}}, "unexpected keyword argument 'depht'"),
        ({"parameterization": "score"}, "unknown parameterization"),
        ({"schedule": {"alpha_bar": [1.0, 2.0]}}, "holds no noise schedule: alpha_bar"),
        ({"files": {"../weights.safetensors": "0"}}, "describes other files"),
    ],
)
def test_faulty_manifests_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path / "b")
    rewrite(tmp_path / "b", **changes)
    with pytest.raises(InvalidBundle, match=message):
        ModelBundle.load(tmp_path / "b")


def test_tampering_is_refused(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "ema.safetensors", "bundle.json"):
        folder = tmp_path / name
        saved(folder)
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(InvalidBundle, match=name):
            ModelBundle.load(folder)


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "b")
    path = tmp_path / "b" / "bundle.json"
    path.write_text(path.read_text().replace('"v"', '"eps"'))
    with pytest.raises(InvalidBundle, match="changed after it was written"):
        ModelBundle.load(tmp_path / "b")


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "bundle.json"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(InvalidBundle, match=f"has no {name}"):
        ModelBundle.load(tmp_path / "b")


def swap(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Puts other weights in, with their true hash."""
    save_file(tensors, folder / "weights.safetensors")
    files = {name: module._sha256(folder / name) for name in ("weights.safetensors", "ema.safetensors")}
    rewrite(folder, files=files)


def test_tensors_of_another_model_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "b")
    weights = load_file(tmp_path / "b" / "weights.safetensors")
    swap(tmp_path / "b", weights)
    ModelBundle.load(tmp_path / "b")
    swap(tmp_path / "b", weights | {"level.layers.0.weight": torch.zeros(8, 3)})
    with pytest.raises(InvalidBundle, match=r"level\.layers\.0\.weight of shape \(8, 3\), a dit .* has \(8, 256\)"):
        ModelBundle.load(tmp_path / "b")
    swap(tmp_path / "b", {name: value for name, value in weights.items() if name != "project.bias"})
    with pytest.raises(InvalidBundle, match=r"project\.bias of shape None"):
        ModelBundle.load(tmp_path / "b")


def test_a_config_of_another_size_is_refused_on_saving(tmp_path: Path) -> None:
    wider = replace(NETWORKS[2].config, width=16)
    with pytest.raises(InvalidBundle, match=r"embed\.weight of shape \(8, 3\)"):
        ModelBundle.save(tmp_path / "b", wider, NETWORKS[2].state_dict(), schedule=SCHEDULE)
    assert not (tmp_path / "b").exists()


def test_a_classifier_is_no_denoiser(tmp_path: Path) -> None:
    bundle = saved(tmp_path / "b", NETWORKS[3], parameterization=None)
    assert isinstance(bundle.network(), NoisyClassifier)
    with pytest.raises(InvalidBundle, match="no denoiser"):
        bundle.denoiser()


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    """A weight file that is a pickle is refused, and its code is not run."""
    saved(tmp_path / "b")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "b" / "weights.safetensors")
    files = {name: module._sha256(tmp_path / "b" / name) for name in ("weights.safetensors", "ema.safetensors")}
    rewrite(tmp_path / "b", files=files)
    with pytest.raises(InvalidBundle, match="no safetensors file"):
        ModelBundle.load(tmp_path / "b")


@dataclass(frozen=True)
class OutsideConfig:
    shape: tuple[int, ...]
    widths: tuple[int, ...] = (3,)


class Outside(nn.Module):
    def __init__(self, config: OutsideConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.shape[0], config.widths[0])


def test_a_network_from_outside_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    network = Outside(OutsideConfig((2,), (4, 5)))
    with pytest.raises(InvalidBundle, match="no network kind has configuration OutsideConfig"):
        saved(tmp_path / "b", network)
    kind = NetworkKind("outside", OutsideConfig, Outside)
    register_network(kind)
    register_network(kind)
    saved(tmp_path / "b", network)
    assert ModelBundle.load(tmp_path / "b").config == OutsideConfig((2,), (4, 5))
    with pytest.raises(InvalidBundle, match="collides with 'dit'"):
        register_network(NetworkKind("dit", OutsideConfig, Outside))
    with pytest.raises(InvalidBundle, match="collides with 'mlp'"):
        register_network(NetworkKind("mine", MLPConfig, MLP))


def test_a_moved_bundle_still_loads(tmp_path: Path) -> None:
    kept = saved(tmp_path / "b")
    shutil.move(tmp_path / "b", tmp_path / "c")
    assert ModelBundle.load(str(tmp_path / "c")).hash == kept.hash
