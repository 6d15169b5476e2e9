"""A T-maze, learnt online by an actor and a critic: which way to turn was shown at the start, a corridor ago.

A cue for 10 steps, a corridor of 50 to 200 steps full of noise, then a junction where the agent turns left or right and
is rewarded, or not. 64 agents walk through mazes without end, and after every 10 steps the network is updated, by HYPR
or by BPTT that ends where the 10 steps begin. Environment and learner are one `lax.scan`. Needs the extra `examples`:

    python examples/tmaze.py
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import maze
import numpy as np
import optax
import outputs

import hyprjax as hj

AGENTS, NEURONS, STEPS = 64, 64, 10  # per update

CELL = hj.alif(tau=20.0, tau_a=lambda key, shape: jax.random.uniform(key, shape, minval=20.0, maxval=400.0))
READOUT = hj.leaky_integrator(tau=10.0)
CELLS = {"hidden": CELL, "readout": READOUT}
OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
RULES = {"hypr": "HYPR", "tbptt": "BPTT truncated to 10 steps"}


def model(params, xs):
    """Preference for either side, and the reward expected."""
    spikes = hj.unroll(CELL, params["hidden"], xs["inputs"], resets=xs["resets"])
    out = hj.unroll(READOUT, params["readout"], spikes, resets=xs["resets"])
    return out[..., :2], out[..., 2]


def loss_fn(params, xs):
    """Where an agent turns: policy gradient, a bonus for undecided policies, and the critic's error."""
    logits, value = model(params, xs)
    actor = optax.softmax_cross_entropy_with_integer_labels(logits, xs["turn"]) * xs["advantage"]
    decided = (jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)
    return (xs["turns"] * (actor + 0.1 * decided + 0.05 * (value - xs["reward"]) ** 2)).mean()


HYPR, TBPTT = hj.hypr_stream(loss_fn), hj.stream(loss_fn)


def act(params, carry, mazes, key):
    """All agents walk for some steps: what they saw, did and got."""
    agent = hj.stream(model)

    def step(state, key):
        carry, mazes = state
        see, choose, build = jax.random.split(key, 3)
        each = lambda key: jax.random.split(key, AGENTS)  # noqa: E731
        xs = {"inputs": jax.vmap(maze.observe)(mazes, each(see)), "resets": mazes["time"] == 0}
        (logits, value), carry = agent.apply(params, carry, jax.tree.map(lambda x: x[None], xs))
        turn = jax.random.categorical(choose, logits[0])
        mazes, turns, reward = jax.vmap(maze.move)(mazes, turn, each(build))
        seen = {"turn": turn, "turns": turns.astype(jnp.float32), "reward": reward, "advantage": reward - value[0]}
        return (carry, mazes), xs | seen

    return jax.lax.scan(step, (carry, mazes), jax.random.split(key, STEPS))


@partial(jax.jit, static_argnums=(0, 1))
def train(rule, updates, seed):
    """How often the agents that turned turned to the right side, and how many did, after every update."""
    start, walk, learn = jax.random.split(jax.random.key(seed), 3)
    k1, k2 = jax.random.split(start)
    hidden = hj.init_layer(k1, CELL, maze.CHANNELS, NEURONS, recurrent=True)
    params = {"hidden": hidden, "readout": hj.init_layer(k2, READOUT, NEURONS, 3)}
    mazes = jax.vmap(maze.new_maze)(jax.random.split(walk, AGENTS))
    first = {"inputs": jnp.zeros((STEPS, AGENTS, maze.CHANNELS)), "resets": jnp.zeros((STEPS, AGENTS), bool)}
    first |= dict.fromkeys(("turns", "reward", "advantage"), jnp.zeros((STEPS, AGENTS)))
    first |= {"turn": jnp.zeros((STEPS, AGENTS), int)}
    carry = (HYPR if rule == "hypr" else TBPTT).init(params, first)

    def update(state, key):
        params, optimiser, acting, carry, mazes = state
        (acting, mazes), xs = act(params, acting, mazes, key)
        if rule == "hypr":
            (_, grads), carry = HYPR.value_and_grad(params, carry, xs)
        else:
            grads, carry = jax.grad(TBPTT.apply, has_aux=True)(params, carry, xs)
        changes, optimiser = OPTIMISER.update(grads, optimiser)
        params = hj.project(CELLS, optax.apply_updates(params, changes))
        return (params, optimiser, acting, carry, mazes), ((xs["turns"] * (xs["reward"] > 0)).sum(), xs["turns"].sum())

    state = params, OPTIMISER.init(params), hj.stream(model).init(params, first), carry, mazes
    return jax.lax.scan(update, state, jax.random.split(learn, updates))[1]


def main(arguments=None):
    parser = outputs.parser(__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="what to train with")
    parser.add_argument("--updates", type=int, default=8000, help="after every 10 steps")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of parameters, mazes and choices")
    parser.add_argument("--out", type=Path, default=outputs.OUT / "tmaze.csv", help="where to save the curves")
    options = parser.parse_args(arguments)
    rows = []
    for rule in options.rules:
        for seed in options.seeds:
            right, turned = map(np.asarray, train(rule, options.updates, seed))
            for part in np.array_split(np.arange(options.updates), min(40, options.updates)):
                rows.append((rule, seed, STEPS * (part[-1] + 1), right[part].sum() / max(turned[part].sum(), 1)))
            print(f"{rule:<6} seed {seed}: {100 * rows[-1][-1]:.1f} % of the last turns are right")
    outputs.write_csv(options.out, ("rule", "seed", "step", "right"), rows)
    outputs.tmaze(options.out.with_suffix(".png"), rows, RULES)


if __name__ == "__main__":
    main()
