"""Numbers that change with the step. Wherever a compressor takes a ratio it takes a number or one of these."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from hvd_compress.validation import reject_unknown, require_int, require_number, shown


class Schedule(Protocol):
    """A function of the step (0, 1, 2, ...) that is the same on every worker."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class WarmUp:
    """Exponential warm-up of a ratio (DGC, Lin et al., ICLR 2018, section 3.3).

    Starts at ``start`` and is multiplied by ``factor`` every ``every`` steps until it would pass ``final``, where it
    stays. Sending more while the gradients still change quickly costs little in the long run. Tuning: ``every`` about
    one epoch.

    >>> [WarmUp(0.001, every=10)(step) for step in (0, 10, 20, 30, 40)]
    [0.25, 0.0625, 0.015625, 0.00390625, 0.001]
    """

    name: ClassVar[str] = "warmup"

    final: float
    start: float = 0.25
    factor: float = 0.25
    every: int = 100

    def __post_init__(self) -> None:
        _ratio("WarmUp final", self.final)
        _ratio("WarmUp start", self.start)
        if _ratio("WarmUp factor", self.factor) == 1:
            raise ValueError(f"WarmUp factor must be below 1, got {self.factor!r}")
        require_int("WarmUp every", self.every, 1)
        if self.start < self.final:
            raise ValueError(f"WarmUp start ({self.start!r}) must not be below final ({self.final!r})")

    def __call__(self, step: int) -> float:
        return float(max(self.final, self.start * self.factor ** (step // self.every)))


@dataclass(frozen=True)
class Decay:
    """A number that moves exponentially from ``start`` to ``final`` over ``steps`` steps and stays there.

    >>> [round(Decay(0.1, 0.001, steps=100)(step), 4) for step in (0, 50, 100, 200)]
    [0.1, 0.01, 0.001, 0.001]
    """

    name: ClassVar[str] = "decay"

    start: float
    final: float
    steps: int

    def __post_init__(self) -> None:
        _ratio("Decay start", self.start)
        _ratio("Decay final", self.final)
        require_int("Decay steps", self.steps, 1)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.final
        return float(self.start * (self.final / self.start) ** (step / self.steps))


@dataclass(frozen=True)
class Steps:
    """A piecewise constant number: ``values[i]`` from step ``boundaries[i-1]`` on (``boundaries`` ascending).

    >>> [Steps((0.1, 0.01), (100,))(step) for step in (0, 99, 100)]
    [0.1, 0.1, 0.01]
    """

    name: ClassVar[str] = "steps"

    values: tuple[float, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        for value in self.values:
            _ratio("Steps values", value)
        for boundary in self.boundaries:
            require_int("Steps boundaries", boundary, 0)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"Steps takes one more value than boundaries, got {len(self.values)} and {len(self.boundaries)}"
            )
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"Steps boundaries must ascend, got {shown(self.boundaries)}")

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= boundary for boundary in self.boundaries)]


@dataclass(frozen=True)
class DiminishingTheta:
    """The ratio ``1 - theta_t`` of FFT sparsification with a dropped fraction theta that diminishes (Wang et al., HPDC
    2020): ``theta_t = theta * (1 + t / every) ** -power``.

    Their analysis has the error of sparsification beside that of the learning rate eta, so that SGD converges if both
    vanish alike: ``theta_t^2`` proportional to ``eta_t``. ``power=0.5`` goes with ``eta_t ~ 1/t``, ``power=0.25`` with
    ``eta_t ~ 1/sqrt(t)``. Ever more is sent, in the end everything. Tuning: ``every`` so large that most of the
    training is over when ``theta`` has halved (at ``t = 3 * every`` with ``power=0.5``).

    >>> [round(DiminishingTheta(0.9, every=100)(step), 3) for step in (0, 100, 300, 10_000)]
    [0.1, 0.364, 0.55, 0.91]
    """

    name: ClassVar[str] = "diminishing_theta"

    theta: float = 0.9
    every: int = 1000
    power: float = 0.5

    def __post_init__(self) -> None:
        if _ratio("DiminishingTheta theta", self.theta) == 1:
            raise ValueError(f"DiminishingTheta theta must be below 1, got {self.theta!r}")
        _ratio("DiminishingTheta power", self.power)
        require_int("DiminishingTheta every", self.every, 1)

    def __call__(self, step: int) -> float:
        return float(1 - self.theta * (1 + step / self.every) ** -self.power)


_LOOKED_AT = (*range(8), *(10**power for power in range(1, 7)))

SCHEDULES: dict[str, Any] = {kind.name: kind for kind in (WarmUp, Decay, Steps, DiminishingTheta)}


def value_at(number: float | Schedule, step: int) -> float:
    """Return the number itself, or the schedule's value at ``step``."""
    return number(step) if callable(number) else number


def check_ratio(name: str, number: Any) -> float | Schedule:
    """Validate a ratio: a number in (0, 1], a schedule, or a schedule's configuration (a dict).

    Return the number or the schedule. Raise TypeError or ValueError naming ``name``.
    """
    if isinstance(number, dict):
        return from_config(number)
    if callable(number):
        _ratio(f"{name}(0)", number(0))
        return number  # type: ignore[no-any-return]
    return _ratio(name, number)


def to_config(number: Any) -> Any:
    """Return the JSON-able form of a number or schedule; ``check_ratio`` inverts it.

    Raises:
        TypeError: a schedule that is not one of this module's (a lambda, say) cannot be written down.
    """
    if not callable(number):
        return number
    for name, kind in SCHEDULES.items():
        if type(number) is kind:
            config = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(number).items()}
            return {"schedule": name, **config}
    raise TypeError(f"{number!r} has no configuration; use one of the schedules {sorted(SCHEDULES)}")


def comparable(number: Any) -> Any:
    """Return what ``to_config`` does, and of a schedule of the user's own the values at some steps: another schedule
    has others."""
    try:
        return to_config(number)
    except TypeError:
        values = []
        for step in _LOOKED_AT:
            try:
                values.append(float(number(step)))
            except Exception:  # it may know only the steps of its training
                break
        return {"schedule": type(number).__name__, "values": values}


def from_config(config: dict[str, Any]) -> Schedule:
    """Build a schedule from ``{"schedule": name, ...}``. Raise ValueError for unknown names and keys."""
    arguments = dict(config)
    name = arguments.pop("schedule", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"a schedule needs 'schedule': one of {sorted(SCHEDULES)}, got {shown(name)}")
    kind = SCHEDULES[name]
    reject_unknown(arguments, kind.__dataclass_fields__, f"schedule {name!r}")
    schedule: Schedule = kind(**arguments)
    return schedule


def _ratio(name: str, number: Any) -> float:
    require_number(name, number, "in (0, 1]", lambda ratio: 0 < ratio <= 1)
    return float(number)
