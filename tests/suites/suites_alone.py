"""Episodes as each suite itself runs them, with its own public functions.

To be called under `foreign`. All have the same form: `alone(name, options, key, actions, keys)`
yields (observation, reward, done) per step. The suites' own resets after the end are left on where
they have them: comparisons stop at the end.
"""

import jax
import numpy as np

from springroll.envs.suite_calls import imported, raw

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def compiled(function, *args):
    """The function compiled for these arguments as quickly as XLA can, not as well."""
    return jax.jit(function).lower(*args).compile(compiler_options=QUICK)


def gymnax(name, options, key, actions, keys):
    env, params = imported("gymnax").make(name)
    params = params.replace(max_steps_in_episode=options["max_steps"])
    _, state = env.reset(raw(key), params)
    step = lambda key, state, action: env.step(key, state, action, params)
    run = compiled(step, raw(keys[0]), state, actions[0])
    for key, action in zip(keys, actions, strict=True):
        _, state, reward, terminated, truncated, info = run(raw(key), state, action)
        yield info["final_observation"], reward, terminated | truncated


def brax(name, options, key, actions, keys):
    length = options.get("max_steps", 1000)
    env = imported("brax.envs").create(name, episode_length=length, auto_reset=False)
    state = compiled(env.reset, raw(key))(raw(key))
    run = compiled(env.step, state, actions[0])
    for action in actions:
        state = run(state, action)
        yield state.obs, state.reward, state.done


def navix(name, options, key, actions, keys):
    env = imported("navix").make(name, max_steps=options["max_steps"])
    timestep = compiled(env.reset, raw(key))(raw(key))
    run = compiled(env.step, timestep, actions[0])
    for action in actions:
        timestep = run(timestep, action)
        yield (
            0.1 * np.asarray(timestep.observation, np.float32),
            timestep.reward,
            timestep.is_done(),
        )


def craftax(name, options, key, actions, keys):
    env = imported("craftax.craftax_env").make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params.replace(max_timesteps=options["max_steps"])
    reset = lambda key: env.reset(key, params)
    step = lambda key, state, action: env.step(key, state, action, params)
    _, state = compiled(reset, raw(key))(raw(key))
    run = compiled(step, raw(keys[0]), state, actions[0])
    for key, action in zip(keys, actions, strict=True):
        observation, state, reward, done, _ = run(raw(key), state, action)
        yield observation, reward, done


def jumanji(name, options, key, actions, keys):
    limit = {"time_limit": options["max_steps"]} if options else {}
    env = imported("jumanji").make(name, **limit)
    state, timestep = compiled(env.reset, raw(key))(raw(key))
    run = compiled(env.step, state, actions[0])
    for action in actions:
        state, timestep = run(state, action)
        yield None, timestep.reward, timestep.last()


def kinetix(name, options, key, actions, keys):
    package = imported("kinetix.environment")
    level, static, params = imported("kinetix.util.saving").load_from_json_file(name)
    params = params.replace(max_timesteps=options["max_steps"])
    env = package.make_kinetix_env(
        package.ActionType.CONTINUOUS,
        package.ObservationType.SYMBOLIC_FLAT,
        lambda _: level,
        params,
        static,
        auto_reset=False,
    )
    _, state = env.reset(raw(key), params)
    step = lambda key, state, action: env.step(key, state, action, params)
    run = compiled(step, raw(keys[0]), state, actions[0])
    for key, action in zip(keys, actions, strict=True):
        observation, state, reward, done, _ = run(raw(key), state, action)
        yield observation, reward, done
