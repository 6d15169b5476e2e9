"""The world of `tmaze.py`: a cue, a corridor full of noise, and a junction where the agent turns, for one agent."""

from functools import partial

import jax
import jax.numpy as jnp

CUE, CORRIDOR, JUNCTION = 10, (50, 200), 10  # steps
GROUPS, GROUP, RATE = 4, 5, 0.4  # left, right, junction and noise, of some channels each
CHANNELS = GROUPS * GROUP


def new_maze(key):
    """Of one agent: the side to turn to, and the steps until the junction and since the start."""
    side, length = jax.random.split(key)
    return {
        "side": jax.random.randint(side, (), 0, 2),
        "junction": CUE + jax.random.randint(length, (), *CORRIDOR),
        "time": 0,
    }


def observe(maze, key):
    """Spikes of all channels."""
    cue, at_junction = maze["time"] < CUE, maze["time"] >= maze["junction"]
    active = jnp.stack([cue & (maze["side"] == 0), cue & (maze["side"] == 1), at_junction, True])
    rates = jnp.where(active, RATE, 0.05) * jnp.array([1, 1, 1, 0.25])
    return jax.random.bernoulli(key, jnp.repeat(rates, GROUP)).astype(jnp.float32)


def move(maze, turn, key):
    """One step: the next maze, whether the agent turned at the junction, and its reward."""
    turns = maze["time"] == maze["junction"] + JUNCTION - 1
    reward = jnp.where(turn == maze["side"], 1.0, -1.0)
    following = jax.tree.map(partial(jnp.where, turns), new_maze(key), {**maze, "time": maze["time"] + 1})
    return following, turns, reward
