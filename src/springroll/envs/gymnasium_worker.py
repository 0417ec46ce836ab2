"""The process that holds Gymnasium environments (see `springroll.worker`).

Every environment has a slot. Payloads are raw arrays, one behind the other, one entry per slot:

    {"describe": true}              ->  what environments are like, see `Slots.describe`
    {"reset": n, "size": size},     ->  {}, observations float32 (n, size)
        slots int32 (n), seeds int64 (n)
    {"step": n, "size": size},      ->  {}, rewards float64 (n), ended uint8 (n),
        slots int32 (n), actions (n, ...)   observations float32 (n, size)

Of environments that failed the answer also says how: {"failed": [[place, kind, line], ...]}.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from springroll.envs.environment import Actions, Box, Discrete
from springroll.envs.gymnasium_spaces import actions_of, flat_of
from springroll.errors import InputError
from springroll.program import pip_install
from springroll.ranges import LARGEST
from springroll.tasks.failures import Unusable, finite_number
from springroll.tasks.user_code import named_function, raised_line
from springroll.worker import Message, Progress, serve

USUAL_STEPS = 1000  # of an episode, where the environment knows no end
PREFIX = "gymnasium-"  # of an id that Gymnasium's registry knows


def main(progress: Progress, name: str, slots: str, timeout: str) -> None:
    """Serve environments `name` in `slots` slots, each call of which may take `timeout` seconds."""
    limit = 2 * (float(timeout) + 1) * int(slots) + 5
    serve(lambda: Slots(maker(name), progress), limit)


class GymEnvironment(Protocol):
    """What an environment must offer."""

    action_space: Any  # a space of any library, see `gymnasium_spaces`

    def reset(self, *, seed: int) -> tuple[Any, dict[str, Any]]: ...
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]: ...


Failed = tuple[int, str, str]  # place in the request, kind of failure, what to say of it


class Slots:
    """Environments by slot, made when they are first reset and again after they failed."""

    def __init__(self, maker: "Maker", progress: Progress) -> None:
        self._maker, self._progress = maker, progress
        self._environments: dict[int, GymEnvironment] = {}
        self._size: int | None = None  # of an observation, once it is known

    def __call__(self, request: Message, payload: bytes) -> tuple[Message, bytes]:
        try:
            if "describe" in request:
                return self.describe(), b""
            self._size = request["size"]
            if "reset" in request:
                return self._reset(request["reset"], payload)
            return self._step(request["step"], payload)
        finally:
            self._progress.rest()

    def describe(self) -> Message:
        """{"size", "actions", "max_steps", "version", "file"}, after one reset and one step."""
        try:
            environment = self._at(0)
            self._progress.begin(0)
            self._size = len(self._observed(environment.reset(seed=0)))
            action = self._native(_any_action(self._actions))[0]
            self._progress.begin(0)
            first, reward, _ = self._stepped(environment.step(action))
            if not (np.isfinite(first).all() and abs(reward) <= LARGEST):
                raise _not_finite(reward)
        except (Exception, SystemExit) as error:  # whatever the user's environment raises
            return {"failed": self._given_up(0, 0, error)}
        spec = getattr(environment, "spec", None)
        steps = getattr(spec, "max_episode_steps", None) or getattr(environment, "max_steps", None)
        return {
            "size": self._size,
            "actions": _as_json(self._actions),
            "max_steps": int(steps or USUAL_STEPS),
            "version": self._maker.version,
            "file": self._maker.file,
        }

    def _at(self, slot: int) -> GymEnvironment:
        """The environment in a slot."""
        if slot not in self._environments:
            self._progress.begin(slot)
            environment = self._maker.make()
            if not hasattr(environment, "action_space"):
                kind = type(environment).__name__
                raise Unusable("wrong", f"a {kind} without action_space; expected an environment")
            self._flat = flat_of(getattr(environment, "observation_space", None))
            self._actions, self._native = actions_of(environment.action_space)
            self._environments[slot] = environment
        return self._environments[slot]

    def _reset(self, count: int, payload: bytes) -> tuple[Message, bytes]:
        slots = np.frombuffer(payload, np.int32, count).tolist()
        seeds = np.frombuffer(payload, np.int64, count, 4 * count).tolist()
        observations = np.zeros((count, self._size or 0), np.float32)
        failed: list[Failed] = []
        for place, (slot, seed) in enumerate(zip(slots, seeds, strict=True)):
            self._progress.begin(slot)
            try:
                observations[place] = self._observed(self._at(slot).reset(seed=seed))
            except (Exception, SystemExit) as error:  # whatever the user's environment raises
                failed.append(self._given_up(place, slot, error))
        for place in np.flatnonzero(~np.isfinite(observations).all(axis=1)).tolist():
            failed.append(self._given_up(place, slots[place], _not_finite(0.0)))
        return {"failed": failed} if failed else {}, observations.tobytes()

    def _step(self, count: int, payload: bytes) -> tuple[Message, bytes]:
        slots = np.frombuffer(payload, np.int32, count).tolist()
        dtype = np.float32 if isinstance(self._actions, Box) else np.int32
        actions = np.frombuffer(payload, dtype, offset=4 * count).reshape(count, -1)
        if isinstance(self._actions, Discrete):
            actions = actions[:, 0]
        observations = np.zeros((count, self._size or 0), np.float32)
        rewards, ended = np.zeros(count), np.zeros(count, np.uint8)
        failed: list[Failed] = []
        for place, (slot, action) in enumerate(zip(slots, self._native(actions), strict=True)):
            self._progress.begin(slot)
            try:
                stepped = self._stepped(self._environments[slot].step(action))
                observations[place], rewards[place], ended[place] = stepped
            except (Exception, SystemExit) as error:  # whatever the user's environment raises
                failed.append(self._given_up(place, slot, error))
        finite = np.isfinite(observations).all(axis=1) & (np.abs(rewards) <= LARGEST)
        for place in np.flatnonzero(~finite).tolist():
            failed.append(self._given_up(place, slots[place], _not_finite(rewards[place])))
        parts = (rewards, ended, observations)
        return {"failed": failed} if failed else {}, b"".join(x.tobytes() for x in parts)

    def _given_up(self, place: int, slot: int, error: BaseException) -> Failed:
        """What to say of an environment that failed; the next episode gets a new one."""
        self._environments.pop(slot, None)
        if isinstance(error, InputError):
            return place, "wrong", str(error)
        if isinstance(error, Unusable):
            return place, error.kind, error.line
        return place, "raised", raised_line(error)

    def _observed(self, reset: Any) -> np.ndarray:
        if not isinstance(reset, tuple) or len(reset) != 2:
            raise Unusable("wrong", "reset returned something else than (observation, info)")
        return self._vector(reset[0])

    def _stepped(self, step: Any) -> tuple[np.ndarray, float, Any]:
        if not isinstance(step, tuple) or len(step) != 5:
            raise Unusable(
                "wrong",
                "step returned something else than (observation, reward, terminated, truncated, "
                "info)",
            )
        observation, reward, terminated, truncated, _ = step
        if type(reward) is not float:
            reward = _number(reward)
        return self._vector(observation), reward, terminated or truncated

    def _vector(self, observation: Any) -> np.ndarray:
        flat = self._flat(observation)
        if self._size is not None and len(flat) != self._size:
            raise Unusable("wrong", f"{len(flat)} observations; expected {self._size}")
        return flat


def _not_finite(reward: float) -> Unusable:
    what = "an observation holds NaN or infinity"
    return Unusable("nan", what if abs(reward) <= LARGEST else f"the reward is {reward}")


def _number(reward: object) -> float:
    try:
        return finite_number(reward)
    except Unusable as error:
        raise Unusable(error.kind, f"the reward is {error.line}") from None


def _any_action(actions: Actions) -> np.ndarray:
    """One allowed action, (1, ...)."""
    if isinstance(actions, Box):
        middle = (np.array(actions.low) + np.array(actions.high)) / 2
        return middle.astype(np.float32)[None]
    return np.zeros(1 if isinstance(actions, Discrete) else (1, len(actions.counts)), np.int32)


def _as_json(actions: Actions) -> list[str | int | tuple[int, ...] | tuple[float, ...]]:
    if isinstance(actions, Box):
        return ["box", actions.low, actions.high]
    if isinstance(actions, Discrete):
        return ["discrete", actions.count]
    return ["multi-discrete", actions.counts]


@dataclass(frozen=True)
class Maker:
    """What makes an environment: a registered id, or a function of the user's."""

    name: str
    make: Callable[[], GymEnvironment]
    version: str = ""  # of gymnasium, where that makes it
    file: str = ""  # the source, where a function of the user's makes it


def maker(name: str) -> Maker:
    """What makes the environment `gymnasium-ID`, `module:function` or `file.py:function`.

    Raises:
        InputError: there is none, or gymnasium is not installed.
    """
    if name.startswith(PREFIX):
        return _registered(name)
    module, function = named_function(name, "the environment")
    return Maker(name, function, file=getattr(module, "__file__", None) or "")


def _registered(name: str) -> Maker:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":
            raise
        raise InputError(
            f"{name} needs gymnasium, which is not installed: {pip_install('rl')}"
        ) from None
    id = name.removeprefix(PREFIX)
    if ":" not in id and id not in gymnasium.registry:
        near = difflib.get_close_matches(id, gymnasium.registry, n=3, cutoff=0.3)
        names = ", ".join(f"{PREFIX}{each}" for each in near) or "none; gymnasium.pprint_registry()"
        raise InputError(f"no environment {name!r}; nearest: {names}")
    # The checker of every step costs more than the step; ours checks what matters here.
    make = lambda: gymnasium.make(id, disable_env_checker=True)
    return Maker(name, make, version=f"gymnasium {gymnasium.__version__}")
