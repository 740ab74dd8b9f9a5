"""Import and export: the same tensors, and a clear error for whatever cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workflows.diffusers_io.conftest import Pair
from workflows.diffusers_io.exporting import export_diffusers
from workflows.diffusers_io.importing import import_pipeline
from workflows.errors import InvalidCheckpoint, StorageUnwritable

MakePair = Callable[[str], Pair]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", ["sd leading-offset", "sd zero-v", "dit", "ddpm"])
def test_import_then_export_gives_the_same_tensors(pair: MakePair, tmp_path: Path, name: str) -> None:
    one = pair(name)
    export_diffusers(one.package.folder, tmp_path / "out")
    files = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.safetensors"))
    for file in files:
        before, after = load_file(one.folder / file), load_file(tmp_path / "out" / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    again = type(one.pipe).from_pretrained(tmp_path / "out")
    assert type(again) is type(one.pipe)
    with pytest.raises(StorageUnwritable, match="there already"):
        export_diffusers(one.package.folder, tmp_path / "out")


def test_weights_are_linked(pair: MakePair) -> None:
    one = pair("sd leading-offset")
    assert (one.package.folder / "denoiser" / "weights.safetensors").samefile(one.folder / UNET)
    assert not (one.package.folder / "denoiser" / "ema.safetensors").exists()


def pickled(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def variant(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")


def pointer(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def code(folder: Path) -> None:
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit('ran')")


def missing(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def cut(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(data[: len(data) // 2])


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    tensors["conv_in.bias"] = torch.zeros(3)
    (folder / UNET).unlink()
    save_file(tensors, folder / UNET)


def changed(file: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    tensors["conv_in.bias"][3] = torch.nan
    (folder / UNET).unlink()
    save_file(tensors, folder / UNET)


def without_words(folder: Path) -> None:
    for file in (folder / "tokenizer").glob("*"):
        if file.name != "tokenizer_config.json":
            file.unlink()


def with_a_word_more(folder: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<cat-toy>"])
    tokenizer.save_pretrained(folder / "tokenizer")


def scheduler(**values: object) -> Callable[[Path], None]:
    return changed("scheduler/scheduler_config.json", **values)


BAD = {
    "NaN": (not_finite, "1 numbers of conv_in.bias are not finite"),
    "no words": (without_words, "has [0-9]+ words, the text encoder reads 49408: copy vocab.json"),
    "word without a row": (with_a_word_more, "'<cat-toy>'.*has number 49408, the text encoder has 49408 rows"),
    "channels": (changed("unet/config.json", out_channels=8), "takes 4 channels and gives 8"),
    "flow": (scheduler(_class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatchEuler.*preserves the variance"),
    "EDM": (scheduler(_class_name="EDMEulerScheduler"), "EDMEuler.*preserves the variance"),
    "flow sigmas": (scheduler(use_flow_sigmas=True), "use_flow_sigmas.*preserves the variance"),
    "pickled": (pickled, "pickled weights only.*safe_serialization"),
    "variant": (variant, "fp16.*full precision"),
    "pointer": (pointer, "Git LFS pointer.*git lfs pull"),
    "code": (code, "holds code.*never run"),
    "own class": (changed("model_index.json", unet=["my_unet", "MyUNet"]), "never run"),
    "missing": (missing, "lacks its vae"),
    "cut": (cut, "no whole safetensors file"),
    "reshaped": (reshaped, "does not fit its config.json.*conv_in.bias"),
    "pipeline": (changed("model_index.json", _class_name="FluxPipeline"), "FluxPipeline.*StableDiffusionPipeline"),
    "prediction": (changed("scheduler/scheduler_config.json", prediction_type="flow"), "'flow'.*v_prediction"),
    "width": (changed("unet/config.json", cross_attention_dim=64), "32 numbers per token.*64|does not fit"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(pair: MakePair, tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    shutil.copytree(pair("sd leading-offset").folder, tmp_path / "bad")
    spoil(tmp_path / "bad")
    with pytest.raises(InvalidCheckpoint, match=message):
        import_pipeline(tmp_path / "bad", tmp_path / "out" / "package")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir()), "nothing half-imported"


def test_what_is_not_followed_is_told(pair: MakePair, tmp_path: Path) -> None:
    folder = tmp_path / "told"
    shutil.copytree(pair("sd leading-offset").folder, folder)
    assert import_pipeline(folder, tmp_path / "plain").differences == [], "negative control"
    scheduler(_class_name="EulerDiscreteScheduler", use_karras_sigmas=True, thresholding=True)(folder)
    changed("model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])(folder)
    told = " / ".join(import_pipeline(folder, tmp_path / "package").differences)
    for part in ("use_karras_sigmas = True", "thresholding = True", "EulerDiscreteScheduler has no", "safety_checker"):
        assert part in told
