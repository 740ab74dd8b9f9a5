"""The kinds of guidance, their settings, and the one value that every interface passes on.

`SETTINGS` lists the numbers that guidance reads, `KINDS` the kinds. A `Guidance` holds some kinds and the settings that
these kinds read; only `Guidance.core_settings` opens it, for the wrappers of `diffusion_core.guidance`.

A new setting is a row of `SETTINGS`, named in the row of its kind, and the code in the wrapper that reads it.
A new kind is a row of `KINDS`, a wrapper of `diffusion_core.guidance`, and its place in `workflows.model.parts.guided`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, final

from workflows.errors import InvalidRequest

SettingValue: TypeAlias = float | tuple[float, float]
"""A number, a flag (0 or 1), or the two ends of an interval."""
CoreSetting: TypeAlias = Callable[[str, float], float]
"""Gives a row's number by the core's name, or the default where the row has none."""
Need: TypeAlias = Literal["nothing", "condition", "classifier", "image_tower"]
"""The part of a model that a kind of guidance needs; `condition`: a denoiser that reads text or labels."""


@final
@dataclass(frozen=True)
class Setting:
    """One number that a kind of guidance reads.

    Attributes:
        name: its name in every interface.
        description: one sentence for help texts and schemas.
        neutral: the value that changes nothing.
        low: the smallest allowed value.
        high: the largest allowed value.
        form: a number, a flag, or an interval.
        core: names of the settings of `diffusion_core.guidance` that it sets; default: its own name.
        option: its option of the command line; default: the name with dashes.
    """

    name: str
    description: str
    neutral: SettingValue
    low: float = 0.0
    high: float = math.inf
    form: Literal["number", "flag", "interval"] = "number"
    core: tuple[str, ...] = ()
    option: str = ""

    @property
    def core_names(self) -> tuple[str, ...]:
        """The names of the core's settings, as many as the value has numbers."""
        return self.core or (self.name,)

    @property
    def command_option(self) -> str:
        """The option of the command line."""
        return self.option or f"--{self.name.replace('_', '-')}"

    def checked(self, value: Any) -> SettingValue:
        """The value in its canonical form.

        Raises:
            InvalidRequest: no value of this form, or out of range; names the setting.
        """
        numbers = tuple(value) if self.form == "interval" and isinstance(value, list | tuple) else (value,)
        if len(numbers) != len(self.core_names) or not all(self._in_range(number) for number in numbers):
            raise InvalidRequest(f"{self.name}: {self.fault(value)}", self.name)
        if self.form != "interval":
            return float(value)
        low, high = (float(number) for number in numbers)
        if low >= high:
            raise InvalidRequest(f"{self.name}: {self.fault(value)}", self.name)
        return (low, high)

    def fault(self, value: Any) -> str:
        """A sentence that says why a value is refused, and what to do."""
        return f"found {value!r}, wanted {self.wanted}: give that, or leave it out"

    def plain(self, value: SettingValue) -> float | bool | list[float]:
        """A checked value as JSON has it: a number, true or false, or a list of two numbers."""
        if isinstance(value, tuple):
            return list(value)
        return bool(value) if self.form == "flag" else value

    @property
    def wanted(self) -> str:
        """The allowed values, for messages and help texts."""
        if self.form == "flag":
            return "true or false"
        bounds = f"in [{self.low:g}, {self.high:g}]" if math.isfinite(self.high) else f"of at least {self.low:g}"
        return f"two numbers {bounds}, the smaller first" if self.form == "interval" else f"a number {bounds}"

    def _in_range(self, value: Any) -> bool:
        if self.form == "flag":
            return value in (False, True)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and math.isfinite(value)


@final
@dataclass(frozen=True)
class GuidanceKind:
    """One kind of guidance.

    Attributes:
        name: its name in every interface.
        title: its name on pages and plots.
        description: one sentence for help texts and schemas.
        needs: the part of a model that it needs.
        sees_prompt: whether the denoiser sees the prompt; under the other kinds a gradient alone steers it.
        scale: the setting that is its strength; None: it has none.
        default: of that setting.
        swept: scales that `raverse sweep` measures by default.
        settings: further settings that it reads.
        gradient: whether it adds the gradient of a judge.
        takes_label: whether it can be asked for a class instead of a prompt.
        takes_negative: whether it reads a negative prompt.
        cost: network evaluations of one step beside the first, from the row's numbers.
    """

    name: str
    title: str
    description: str
    needs: Need
    sees_prompt: bool
    scale: str | None = None
    default: float = 1.0
    swept: tuple[float, ...] = ()
    settings: tuple[str, ...] = ()
    gradient: bool = False
    takes_label: bool = False
    takes_negative: bool = False
    cost: Callable[[CoreSetting], float] = lambda _: 0.0

    @property
    def reads(self) -> tuple[str, ...]:
        """All settings that it reads, its scale first."""
        return (*([self.scale] if self.scale else []), *self.settings)


SETTINGS: Final[Mapping[str, Setting]] = {
    setting.name: setting
    for setting in (
        Setting(
            "guidance_scale",
            "Classifier-free scale w; 1 is the plain conditional model.",
            neutral=1.0,
            option="--scale",
        ),
        Setting("classifier_scale", "Scale of the noisy classifier's gradient.", neutral=0.0),
        Setting("clip_scale", "Scale of CLIP's gradient.", neutral=0.0),
        Setting(
            "guidance_interval",
            "Guides only where the noise level sigma = sqrt((1 - alpha_bar) / alpha_bar) lies in [MIN, MAX); "
            "0 and 1e9 leave an end open.",
            high=1e9,
            neutral=(0.0, 1e9),
            form="interval",
            core=("guidance_sigma_min", "guidance_sigma_max"),
        ),
        Setting(
            "guidance_rescale",
            "Brings the contrast of the guided x0 back towards that of the conditional one: 0 not, 1 wholly.",
            high=1.0,
            neutral=0.0,
        ),
        Setting(
            "apg_eta",
            "Weight of the part of the guidance that is parallel to the conditional x0 (APG); 1 is plain guidance.",
            high=100.0,
            neutral=1.0,
        ),
        Setting(
            "apg_norm",
            "Longest guidance in x0, as a norm over the whole picture (APG).",
            high=1e9,
            neutral=1e9,
        ),
        Setting(
            "cfg_plus_plus",
            "Adds back the unconditional noise in each step (CFG++); the scale is then in [0, 1].",
            high=1.0,
            neutral=0.0,
            form="flag",
        ),
    )
}
"""The settings by name. The neutral ends of an interval or norm are so large that no picture reaches them."""


def _second_pass(setting: CoreSetting) -> float:
    """Classifier-free guidance evaluates the network again, except at w = 0 and w = 1 (CFG++ always does).

    An interval saves evaluations outside of it; the cost is that of a step inside.
    """
    single = setting("guidance_scale", 1.0) in (0.0, 1.0) and setting("cfg_plus_plus", 0.0) == 0.0
    return 0.0 if single else 1.0


def _gradient(name: str, cost: float) -> Callable[[CoreSetting], float]:
    """A gradient costs its judge's forward and backward pass in every step, except at scale 0."""
    return lambda setting: cost if setting(name, 0.0) != 0.0 else 0.0


KINDS: Final[Mapping[str, GuidanceKind]] = {
    kind.name: kind
    for kind in (
        GuidanceKind("none", "unconditional", "unconditional", "nothing", sees_prompt=False),
        GuidanceKind("direct", "direct", "the prompt as it was trained", "condition", sees_prompt=True),
        GuidanceKind(
            "classifier_free",
            "classifier-free",
            "extrapolated away from no prompt or the negative one",
            "condition",
            sees_prompt=True,
            scale="guidance_scale",
            default=2.0,
            swept=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0),
            settings=("guidance_interval", "guidance_rescale", "apg_eta", "apg_norm", "cfg_plus_plus"),
            takes_negative=True,
            cost=_second_pass,
        ),
        GuidanceKind(
            "classifier",
            "classifier",
            "the unconditional model steered by a noisy-image classifier, towards `label` or the prompt",
            "classifier",
            sees_prompt=False,
            scale="classifier_scale",
            default=3.0,
            swept=(0.0, 1.0, 4.0, 16.0, 64.0, 256.0),
            gradient=True,
            takes_label=True,
            # The classifier is a small network.
            cost=_gradient("classifier_scale", 1.0),
        ),
        GuidanceKind(
            "clip",
            "CLIP",
            "steered by CLIP",
            "image_tower",
            sees_prompt=False,
            scale="clip_scale",
            default=3.0,
            swept=(0.0, 1.0, 4.0, 16.0, 64.0, 256.0),
            gradient=True,
            # The gradient runs through the denoiser and both towers.
            cost=_gradient("clip_scale", 2.0),
        ),
    )
}
"""The kinds by name, in the order in which interfaces list them."""


def _names(holds: Callable[[GuidanceKind], bool]) -> str:
    return " or ".join(kind.name for kind in KINDS.values() if holds(kind))


SCALED_KINDS: Final = _names(lambda kind: kind.scale is not None)
"""Those that have a strength, for messages and descriptions."""
NEGATIVE_KINDS: Final = _names(lambda kind: kind.takes_negative)
"""Those that read a negative prompt."""
LABEL_KINDS: Final = _names(lambda kind: kind.takes_label)
"""Those that can be asked for a class."""
SCALED: Final = tuple(kind for kind in KINDS.values() if kind.scale is not None)
"""The kinds that have a strength."""
SCALE_NAMES: Final = tuple(kind.scale for kind in SCALED if kind.scale is not None)
FURTHER_NAMES: Final = tuple(name for name in SETTINGS if name not in SCALE_NAMES)
"""The settings that are no scale."""
NEUTRAL_SETTINGS: Final[Mapping[str, SettingValue]] = {name: SETTINGS[name].neutral for name in FURTHER_NAMES}
"""These values leave guidance to its scales, whatever a model's own settings are."""
DEFAULT_SCALES: Final[Mapping[str, float]] = {kind.scale: kind.default for kind in SCALED if kind.scale is not None}
"""The default of each scale, by its name."""

if TYPE_CHECKING:
    KindName: TypeAlias = str
else:
    KindName = Literal[tuple(KINDS)]


@final
@dataclass(frozen=True)
class Guidance:
    """Some kinds of guidance and their settings: how rows are steered towards what they show.

    Attributes:
        kinds: names of the kinds, in the table's order.
        values: settings by name, in the table's order; what is absent takes the model's default.
    """

    kinds: tuple[str, ...]
    values: tuple[tuple[str, SettingValue], ...] = ()

    @classmethod
    def of(cls, name: str, **settings: Any) -> Guidance:
        """The guidance that a user names.

        Args:
            name: a kind, or several joined by `+`.
            **settings: by name; None is absent.

        Raises:
            InvalidRequest: an unknown kind or setting, `none` beside another kind, a value out of range, or a setting
                that no kind of these reads; names the field.
        """
        bare = cls(_parse(name))
        given = {key: value for key, value in settings.items() if value is not None}
        if unread := [key for key in given if key in SETTINGS and key not in bare.reads]:
            others = _names(lambda kind: unread[0] in kind.reads)
            raise InvalidRequest(
                f"{unread[0]}: it has no effect with guidance {bare.name!r}: leave it out, or take guidance {others}",
                unread[0],
            )
        return bare.with_settings(**given)

    @property
    def name(self) -> str:
        """The kinds, joined by `+`."""
        return "+".join(self.kinds)

    @property
    def settings(self) -> dict[str, SettingValue]:
        """The settings by name."""
        return dict(self.values)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all settings that its kinds read."""
        return tuple(name for kind in self.rows for name in kind.reads)

    @property
    def rows(self) -> tuple[GuidanceKind, ...]:
        """The table's rows of its kinds."""
        return tuple(KINDS[kind] for kind in self.kinds)

    @property
    def sees_prompt(self) -> bool:
        """Whether the denoiser sees the prompt."""
        return any(kind.sees_prompt for kind in self.rows)

    @property
    def takes_label(self) -> bool:
        """Whether one of its kinds can be asked for a class."""
        return any(kind.takes_label for kind in self.rows)

    @property
    def takes_negative(self) -> bool:
        """Whether one of its kinds reads a negative prompt."""
        return any(kind.takes_negative for kind in self.rows)

    @property
    def gradient(self) -> bool:
        """Whether one of its kinds adds a gradient."""
        return any(kind.gradient for kind in self.rows)

    def with_settings(self, **settings: Any) -> Guidance:
        """Sets some of the settings that its kinds read; others are left out.

        Raises:
            InvalidRequest: an unknown setting, a value out of range, or values that exclude each other; names the
                setting.
        """
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise InvalidRequest(f"{unknown[0]}: unknown setting: give one of {', '.join(SETTINGS)}", unknown[0])
        table = self.settings | {
            name: SETTINGS[name].checked(value) for name, value in settings.items() if name in self.reads
        }
        _check_together(table)
        return replace(self, values=tuple((name, table[name]) for name in SETTINGS if name in table))

    def over(self, defaults: Mapping[str, Any]) -> Guidance:
        """Fills in the settings that it leaves open, as far as its kinds read them.

        Args:
            defaults: settings by name; scales that are in neither take the table's defaults.

        Raises:
            InvalidRequest: values that exclude each other; names the setting.
        """
        return self.with_settings(**(dict(DEFAULT_SCALES) | dict(defaults) | self.settings))

    def at(self, scale: float) -> Guidance:
        """The same at this strength, for each of its kinds that has one."""
        return self.with_settings(**{kind.scale: scale for kind in self.rows if kind.scale is not None})

    @property
    def scale(self) -> float:
        """The strength of a single kind: 1 for `direct`, 0 for `none`, the table's default where nothing is said."""
        (kind,) = self.rows
        if kind.scale is None:
            return 1.0 if kind.sees_prompt else 0.0
        value = self.settings.get(kind.scale, kind.default)
        assert isinstance(value, float)
        return value

    def further(self) -> dict[str, Any]:
        """The settings that are no scale, by name, as JSON has them."""
        return {name: SETTINGS[name].plain(value) for name, value in self.values if name in FURTHER_NAMES}

    def core_settings(self) -> dict[str, float]:
        """The numbers that the wrappers of `diffusion_core.guidance` read, by the core's names.

        Scales of kinds that are not in use are not named: a model may lack their wrappers. The classifier-free scale
        always is, 1 where no guidance extrapolates.
        """
        numbers = {"guidance_scale": 1.0}
        for name, value in self.values:
            setting = SETTINGS[name]
            ends = zip(setting.core_names, _ends(value), _ends(setting.neutral), strict=True)
            # The first level of some schedules is infinitely noisy, and an end that is left open has to hold it.
            numbers |= {core: end for core, end, neutral in ends if name in SCALE_NAMES or end != neutral}
        return numbers


DEFAULT_GUIDANCE: Final = Guidance(("classifier_free",))
"""The guidance of requests that name none, at the model's own settings."""


def extra_evaluations(setting: CoreSetting) -> float:
    """Network evaluations that guidance adds to one step of a row; gradients count by the time they take.

    Args:
        setting: the row's numbers, by the core's names.
    """
    return sum(kind.cost(setting) for kind in KINDS.values())


def offered_kinds(parts: Iterable[Need]) -> tuple[str, ...]:
    """The kinds that a model with these parts offers, in the table's order."""
    there = {"nothing", *parts}
    return tuple(kind.name for kind in KINDS.values() if kind.needs in there)


def _ends(value: SettingValue) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _parse(name: str) -> tuple[str, ...]:
    kinds = set(name.split("+"))
    if unknown := sorted(kinds - KINDS.keys()):
        raise InvalidRequest(f"unknown guidance {unknown[0]!r}: give one of {', '.join(KINDS)}", "guidance")
    if "none" in kinds and len(kinds) > 1:
        raise InvalidRequest(f"guidance {name!r}: `none` stands alone", "guidance")
    return tuple(kind for kind in KINDS if kind in kinds)


def _check_together(settings: Mapping[str, SettingValue]) -> None:
    scale = settings.get("guidance_scale")
    if settings.get("cfg_plus_plus") and isinstance(scale, float) and scale > 1.0:
        raise InvalidRequest(
            f"guidance_scale: found {scale:g}, wanted a number in [0, 1] with cfg_plus_plus: "
            "give such a scale, or switch cfg_plus_plus off",
            "guidance_scale",
        )
