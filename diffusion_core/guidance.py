r"""Guidance: wrappers that take a denoiser and are one.

Each reads its numbers per row from `Condition.settings`, evaluates the denoiser only as often as the rows
ask, and hands on a consistent `Prediction`; so they nest in any order, with `Thresholding` outermost:

    Thresholding(GradientGuidance(ClassifierFreeGuidance(denoiser), classifier.log_density))

A scale w = 1 is the plain conditional model; a gradient scale of 0 is no guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser, check_rows
from diffusion_core.errors import InvalidGuidance
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.types import Data, Levels, RowMask, Rows, expand

_INTERVAL: Final = ("guidance_sigma_min", "guidance_sigma_max")


@runtime_checkable
class LogDensity(Protocol):
    """How well each row fits its condition: log p(condition | x), up to a constant, `(b,)`, differentiable in x."""

    def __call__(self, x: Data, level: Levels, condition: Condition) -> Rows:
        """Judges x, at the rows' levels, against the rows' targets."""
        ...


@final
class ClassifierFreeGuidance:
    r"""Extrapolates away from the unconditional prediction: `x0_u + w (x0_c - x0_u)`, and eps alike.

    The unconditional prediction is that of the row's negative condition, where it has one, else of the null condition.
    A row with w = 1 (or outside its interval of sigma) costs one evaluation, with w = 0 also one; others cost two, in
    the same call.

    Settings:
        guidance_scale: w, finite.
        guidance_sigma_min, guidance_sigma_max: guides where `min <= sqrt((1 - ab) / ab) < max`.
        guidance_rescale: phi in [0, 1]; brings the deviation of x0 back to that of x0_c.
        apg_eta: weight of the part of `x0_c - x0_u` parallel to x0_c (1: plain).
        apg_norm: longest allowed `x0_c - x0_u` (infinite: plain).
        cfg_plus_plus: 1: the step adds back the noise predicted without guidance; w is then in [0, 1].

    Args:
        denoiser: what is guided.
        scale: w of rows without the setting.

    References:
        Ho & Salimans, Classifier-Free Diffusion Guidance (2022), whose w is this one minus 1; Kynkäänniemi et al.
        (2024), interval; Lin et al. (2023), rescale; Sadat et al. (2024), APG; Chung et al. (2024), CFG++.
    """

    def __init__(self, denoiser: Denoiser, scale: float = 1.0) -> None:
        self.denoiser = denoiser
        self._defaults = {
            "guidance_scale": scale,
            "guidance_sigma_min": 0.0,
            "guidance_sigma_max": math.inf,
            "guidance_rescale": 0.0,
            "apg_eta": 1.0,
            "apg_norm": math.inf,
            "cfg_plus_plus": 0.0,
        }

    @property
    def schedule(self) -> NoiseSchedule:
        """That of the guided denoiser."""
        return self.denoiser.schedule

    @property
    def settings(self) -> Mapping[str, float]:
        """See the class."""
        return {**self.denoiser.settings, **self._defaults}

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """See `Denoiser.__call__`."""
        check_rows(x_t, level, condition)
        if condition is None:
            return self.denoiser(x_t, level, None)
        if condition.settings.keys().isdisjoint(_INTERVAL):
            batch = condition.derived(self, lambda: self._batch(condition, None))
        else:
            batch = self._batch(condition, self.schedule.sigma(level).cpu())
        if len(batch.pair) == 0:
            return self.denoiser(x_t, level, batch.condition)
        index, alone = batch.pair.to(x_t.device), len(batch.pair) < len(x_t)
        both = self.denoiser(
            torch.cat([x_t, x_t[index]]), torch.cat([level, level[batch.pair.to(level.device)]]), batch.condition
        )
        first, uncond = both.rows(slice(0, len(x_t))), both.rows(slice(len(x_t), None))
        cond = first.rows(index) if alone else first
        guided = _extrapolate(cond, uncond, batch.scale)
        if batch.reshaped:
            guided = _reshape(guided, cond, uncond, batch.scale, batch.settings)
        if batch.renoised:
            guided = guided.renoise_with(uncond.eps, batch.plus_plus.to(x_t.device))
        return first.with_rows(index, guided) if alone else guided

    def _batch(self, condition: Condition, sigma: Rows | None) -> _Batch:
        """Every row once (without its condition where w = 0), then the rows that need both without theirs.

        Args:
            condition: of the rows.
            sigma: of their levels, where some have an interval.
        """
        settings = {name: condition.setting(name, default) for name, default in self._defaults.items()}
        _require_finite(settings["guidance_scale"], "guidance_scale")
        scale, plus_plus = settings["guidance_scale"], settings["cfg_plus_plus"] > 0
        if sigma is not None:
            # At zero terminal SNR sigma is infinite: an interval without an upper end holds it.
            below = (sigma < settings["guidance_sigma_max"]) | settings["guidance_sigma_max"].isinf()
            inside = (sigma >= settings["guidance_sigma_min"]) & below
            scale, plus_plus = torch.where(inside, scale, 1.0), plus_plus & inside
        single = ((scale == 0) | (scale == 1)) & ~plus_plus
        only_uncond, pair = ((scale == 0) & single).nonzero().flatten(), (~single).nonzero().flatten()
        shown = condition.with_rows(only_uncond, _unconditional(condition)) if len(only_uncond) else condition
        if len(pair):
            shown = Condition.cat([shown, _unconditional(condition).rows(pair)])
        return _Batch(shown, pair, scale[pair], plus_plus[pair], {name: rows[pair] for name, rows in settings.items()})


@dataclass(frozen=True, eq=False)
class _Batch:
    """The rows that classifier-free guidance evaluates in one call.

    Attributes:
        condition: of every row, then of those of `pair` without their own.
        pair: the rows that are evaluated twice.
        scale: of those rows.
        plus_plus: whether they are re-noised.
        settings: all their settings.
    """

    condition: Condition
    pair: Tensor
    scale: Tensor
    plus_plus: RowMask
    settings: Mapping[str, Tensor]

    @cached_property
    def reshaped(self) -> bool:
        """Whether any row has adaptive projection or rescaling."""
        whole = (self.settings["apg_eta"] == 1) & self.settings["apg_norm"].isinf()
        return not bool((whole & (self.settings["guidance_rescale"] <= 0)).all())

    @cached_property
    def renoised(self) -> bool:
        """Whether any row is re-noised."""
        return bool(self.plus_plus.any())


@final
class AutoGuidance:
    """Extrapolates away from a weaker denoiser: `x0_weak + w (x0 - x0_weak)`, under the same condition.

    Settings:
        autoguidance_scale: w; rows with 1 do not evaluate the weak denoiser.

    Args:
        denoiser: the strong one.
        weak: smaller or less trained, with the same schedule.
        scale: w of rows without the setting.

    Raises:
        InvalidGuidance: the two have different schedules.

    References:
        Karras et al., Guiding a Diffusion Model with a Bad Version of Itself (2024).
    """

    def __init__(self, denoiser: Denoiser, weak: Denoiser, scale: float = 1.0) -> None:
        if not torch.equal(denoiser.schedule.alpha_bar, weak.schedule.alpha_bar):
            raise InvalidGuidance("the weak denoiser has another noise schedule: train both with one")
        self.denoiser, self.weak, self._scale = denoiser, weak, scale

    @property
    def schedule(self) -> NoiseSchedule:
        """That of both denoisers."""
        return self.denoiser.schedule

    @property
    def settings(self) -> Mapping[str, float]:
        """See the class."""
        return {**self.denoiser.settings, **self.weak.settings, "autoguidance_scale": self._scale}

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """See `Denoiser.__call__`."""
        check_rows(x_t, level, condition)
        strong = self.denoiser(x_t, level, condition)
        given = Condition.null(len(x_t)) if condition is None else condition
        scale = given.setting("autoguidance_scale", self._scale)
        _require_finite(scale, "autoguidance_scale")
        rows = (scale != 1).nonzero().flatten()
        if len(rows) == 0:
            return strong
        index = rows.to(x_t.device)
        weak = self.weak(x_t[index], level[rows.to(level.device)], None if condition is None else condition.rows(rows))
        return strong.with_rows(index, _extrapolate(strong.rows(index), weak, scale[rows]))


@final
class GradientGuidance:
    r"""Adds the gradient of a log density to the score: `eps - s sigma grad_{x_t} log p(condition | x_t)`.

    One form for three kinds, which differ in `log_density` and in where it looks:
    a noisy-image classifier, by label or by text, and noisy CLIP judge x_t itself, at the cost of their own
    gradient only; clean CLIP judges the predicted x0, so its gradient runs through the denoiser.

    Settings:
        {name}_scale: s; rows with 0 cost nothing more.

    Args:
        denoiser: what is guided.
        log_density: judges each row.
        name: of the setting.
        at: what `log_density` is shown: `x_t`, or the predicted `x0`.
        scale: s of rows without the setting.

    References:
        Dhariwal & Nichol, Diffusion Models Beat GANs (2021), algorithm 2, with one score shift for all samplers;
        Nichol et al., GLIDE (2021), section 2.3, for noisy CLIP.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_density: LogDensity,
        *,
        name: str = "classifier",
        at: Literal["x_t", "x0"] = "x_t",
        scale: float = 0.0,
    ) -> None:
        self.denoiser, self.log_density, self.at = denoiser, log_density, at
        self._setting, self._scale = f"{name}_scale", scale

    @property
    def schedule(self) -> NoiseSchedule:
        """That of the guided denoiser."""
        return self.denoiser.schedule

    @property
    def settings(self) -> Mapping[str, float]:
        """See the class."""
        return {**self.denoiser.settings, self._setting: self._scale}

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """See `Denoiser.__call__`."""
        check_rows(x_t, level, condition)
        if condition is None or (self._scale == 0 and self._setting not in condition.settings):
            return self.denoiser(x_t, level, condition)
        scale, rows, asking = condition.derived(self, lambda: self._asking(condition))
        if asking is None:
            return self.denoiser(x_t, level, condition)
        if self.at == "x_t":
            index = rows.to(x_t.device)
            prediction = self.denoiser(x_t, level, condition)
            score = self._score_at_x_t(x_t[index], level[rows.to(level.device)], asking)
            return prediction.with_rows(index, prediction.rows(index).shifted(_times(scale[rows], score)))
        return self._through_denoiser(x_t, level, condition, scale, rows, asking)

    def _asking(self, condition: Condition) -> tuple[Tensor, Tensor, Condition | None]:
        """The scale of every row, which rows ask for guidance, and their condition, if any does."""
        scale = condition.setting(self._setting, self._scale)
        _require_finite(scale, self._setting)
        rows = (scale != 0).nonzero().flatten()
        return scale, rows, condition.rows(rows) if len(rows) else None

    def _score_at_x_t(self, x_t: Data, level: Levels, condition: Condition) -> Data:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            return torch.autograd.grad(self.log_density(x, level, condition).sum(), x)[0]

    def _through_denoiser(
        self, x_t: Data, level: Levels, condition: Condition, scale: Tensor, rows: Tensor, asking: Condition
    ) -> Prediction:
        """Rows that ask are evaluated once, with gradient; the others once, without."""
        here = level[rows.to(level.device)]
        with torch.enable_grad():
            x = x_t[rows.to(x_t.device)].detach().requires_grad_()
            prediction = self.denoiser(x, here, asking)
            score = torch.autograd.grad(self.log_density(prediction.x0, here, asking).sum(), x)[0]
        guided = prediction.detach().shifted(_times(scale[rows], score))
        others = (scale == 0).nonzero().flatten()
        if len(others) == 0:
            return guided
        plain = self.denoiser(x_t[others.to(x_t.device)], level[others.to(level.device)], condition.rows(others))
        order = torch.cat([rows, others]).argsort().to(x_t.device)
        return Prediction.cat([guided, plain]).rows(order)


@final
class Thresholding:
    """Keeps x0 inside the data's range, and re-derives eps; it belongs outermost, after all guidance.

    Settings:
        clip_x0: b > 0: clamps x0 to [-b, b] (static thresholding; 0: off).
        dynamic_threshold: p in (0, 1]: with q the p-quantile of |x0| in the row and s = max(q, 1), clamps to
            [-s, s] and divides by s (0: off).

    Args:
        denoiser: what is kept in range.
        clip_x0: bound of rows without the setting.

    References:
        Saharia et al., Imagen (2022), section 2.3.
    """

    def __init__(self, denoiser: Denoiser, clip_x0: float = 0.0) -> None:
        self.denoiser = denoiser
        self._defaults = {"clip_x0": clip_x0, "dynamic_threshold": 0.0}

    @property
    def schedule(self) -> NoiseSchedule:
        """That of the wrapped denoiser."""
        return self.denoiser.schedule

    @property
    def settings(self) -> Mapping[str, float]:
        """See the class."""
        return {**self.denoiser.settings, **self._defaults}

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """See `Denoiser.__call__`.

        Raises:
            InvalidGuidance: a negative bound, or a quantile outside [0, 1].
        """
        prediction = self.denoiser(x_t, level, condition)
        given = Condition.null(len(x_t)) if condition is None else condition
        if given.settings.keys().isdisjoint(self._defaults) and self._defaults["clip_x0"] > 0:
            everywhere = self._defaults["clip_x0"]
            return prediction.with_x0(prediction.x0.clamp(-everywhere, everywhere))
        bound, quantile = (given.setting(name, default) for name, default in self._defaults.items())
        if not bool(((bound >= 0) & (quantile >= 0) & (quantile <= 1)).all()):
            raise InvalidGuidance("clip_x0 must be >= 0 and dynamic_threshold in [0, 1]: 0 turns either off")
        x0 = prediction.x0
        if bool((quantile > 0).any()):
            x0 = _dynamic(x0, quantile)
        if bool((bound > 0).any()):
            limit = expand(torch.where(bound > 0, bound, math.inf).to(x0), x0)
            x0 = torch.minimum(torch.maximum(x0, -limit), limit)
        return prediction if x0 is prediction.x0 else prediction.with_x0(x0, (bound > 0) | (quantile > 0))


def _unconditional(condition: Condition) -> Condition:
    """The condition that each row moves away from; it keeps the row's own settings, for wrappers further in."""
    if condition.negative is None:
        return condition.hidden()
    return replace(condition.negative, settings=condition.settings, negative=None)


def _extrapolate(cond: Prediction, uncond: Prediction, scale: Tensor) -> Prediction:
    """`uncond + w (cond - uncond)`, in x0 and in eps: linear, so it is exact at both ends of the schedule."""
    w = expand(scale.to(cond.x0), cond.x0)
    return replace(cond, x0=torch.lerp(uncond.x0, cond.x0, w), eps=torch.lerp(uncond.eps, cond.eps, w))


def _reshape(
    guided: Prediction, cond: Prediction, uncond: Prediction, scale: Tensor, settings: Mapping[str, Tensor]
) -> Prediction:
    """Adaptive projection and rescaling of x0, on the rows that ask for them."""
    projected = (settings["apg_eta"] != 1) | torch.isfinite(settings["apg_norm"])
    rescaled = settings["guidance_rescale"] > 0
    x0 = guided.x0
    if bool(projected.any()):
        update = _projected(cond.x0 - uncond.x0, cond.x0, settings["apg_eta"], settings["apg_norm"])
        x0 = torch.where(expand(projected.to(x0.device), x0), cond.x0 + _times(scale - 1.0, update), x0)
    if bool(rescaled.any()):
        ratio = _deviation(cond.x0) / _deviation(x0).clamp(min=torch.finfo(x0.dtype).tiny)
        x0 = x0 * torch.lerp(torch.ones_like(ratio), ratio, expand(settings["guidance_rescale"].to(x0), x0))
    return guided.with_x0(x0, projected | rescaled)


def _projected(difference: Data, onto: Data, eta: Tensor, longest: Tensor) -> Data:
    """Shortens the difference, then weighs its part parallel to x0 by eta (Sadat et al., 2024, algorithm 1)."""
    tiny = torch.finfo(difference.dtype).tiny
    norm = _row_sum(difference.square()).sqrt().clamp(min=tiny)
    difference = difference * (expand(longest.to(difference), difference) / norm).clamp(max=1.0)
    along = _row_sum(difference * onto) / _row_sum(onto.square()).clamp(min=tiny)
    return difference + (expand(eta.to(difference), difference) - 1.0) * along * onto


def _deviation(x: Data) -> Data:
    count = x[0].numel()
    return (_row_sum((x - _row_sum(x) / count).square()) / max(count - 1, 1)).sqrt()


def _row_sum(x: Data) -> Data:
    """Sums each row as one contiguous run, in an order that does not depend on the other rows."""
    return expand(x.flatten(1).contiguous().sum(dim=1), x)


def _dynamic(x0: Data, quantile: Tensor) -> Data:
    rows = (quantile > 0).nonzero().flatten().to(x0.device)
    sizes = x0[rows].abs().flatten(1).sort(dim=1).values
    place = ((sizes.shape[1] - 1) * quantile[quantile > 0]).round().long().to(x0.device)
    bound = expand(sizes.gather(1, place[:, None])[:, 0].clamp(min=1.0), x0[rows])
    out = x0.clone()
    out[rows] = torch.minimum(torch.maximum(x0[rows], -bound), bound) / bound
    return out


def _times(rows: Tensor, data: Data) -> Data:
    return expand(rows.to(data), data) * data


def _require_finite(scale: Tensor, name: str) -> None:
    # The cheapest look at all of them: a sum is finite only if every part is.
    if math.isfinite(float(scale.sum())):
        return
    rows = (~torch.isfinite(scale)).nonzero().flatten().tolist()
    if rows:
        raise InvalidGuidance(f"{name} is not finite in rows {rows}: give a number")
