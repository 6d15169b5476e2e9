"""Evidence accumulation (Bellec et al. 2020): seven cues on two sides, a pause of a second, then which side had more.

The first cue lies 2,000 steps before the answer, the updates come every 10 or 50. Sizes and time constants are the
paper's, 50 LIF and 50 ALIF neurons with an adaptation of 2,000 steps; each spike raises the threshold by 0.1 instead of
0.017, and nothing holds the firing rate. Needs the extra `examples`. Run it:

    python examples/evidence.py --segment-length 10
"""

import jax.numpy as jnp
import optax
import training

import hyprjax as hj
import hyprjax.data

NEURONS, CHANNELS, SIDES = 100, 40, 2


def half(value):
    """An initializer: nothing for the first half of the neurons, LIF, `value` for the others, ALIF."""
    return lambda key, shape: jnp.where(jnp.arange(*shape) < shape[0] // 2, 0.0, value)


def main(arguments=None):
    parser = training.parser(__doc__, rules=["hypr-online", "tbptt-online"], epochs=20, segment_length=10)
    parser.add_argument("--sequences", type=int, default=1280, help="to learn from; a fifth as many test")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of Adam, decayed linearly")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences that are seen at once")
    options = parser.parse_args(arguments)
    train = hj.data.evidence_accumulation(options.sequences, seed=0)
    test = hj.data.evidence_accumulation(options.sequences // 5, seed=1)
    cell = hj.alif(tau=20.0, tau_a=2000.0, beta=half(0.1))
    sizes = (CHANNELS, NEURONS, SIDES)
    network = training.stack(cell, hj.leaky_integrator(tau=20.0), sizes)

    def optimiser(updates):
        schedule = optax.linear_schedule(options.learning_rate, 0.0, updates)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    return training.run("evidence", "alif", network, (train, test), optimiser, options, batch_size=options.batch_size)


if __name__ == "__main__":
    main()
