"""ECG-QTDB: which of six waves of the heartbeat is it, at every step? 36 recurrent neurons, BPTT and HYPR.

The set-ups are those of Higuchi et al. 2024 (BRF) and Baronig et al. 2024 (SE-adLIF), 400 epochs. Needs the
data set (see `hyprjax.data.ecg_qtdb`) and the extra `examples`. Run it:

    python examples/ecg.py --cell brf --rules bptt hypr --seeds 0 1 2
"""

import jax
import optax
import training

import hyprjax as hj
import hyprjax.data

SIZES = (4, 36, 6)  # channels, neurons, waves


def normal(mean, deviation):
    """An initializer."""
    return lambda key, shape: mean + deviation * jax.random.normal(key, shape)


def brf(learning_rate=0.1):
    """Higuchi et al. 2024: Adam 0.1 with linear decay, batch 16, no bias."""
    cell = hj.brf(omega=(3.0, 5.0), b_offset=(0.1, 1.0), dt=0.01)
    readout = hj.leaky_integrator(normal(20.0, 1.0))
    network = training.stack(cell, readout, SIZES, weights=hj.weights.glorot_uniform, bias=False)
    return network, lambda updates: optax.adam(optax.linear_schedule(learning_rate, 0.0, updates)), 16


def se_adlif(learning_rate=0.01):
    """Baronig et al. 2024: Adam 0.01, gradients clipped to a norm of 1.5, batch 64, q 120, dropout 0.15."""
    spike = hj.surrogate.slayer(alpha=5.0, c=0.2)
    cell = hj.se_adlif(tau_u=(5.0, 25.0), tau_w=(60.0, 300.0), q=120.0, spike=spike)
    weights = hj.weights.uniform_orthogonal
    network = training.stack(cell, hj.leaky_integrator(tau=3.0), SIZES, weights=weights, dropout=0.15)
    return network, lambda updates: optax.chain(optax.clip_by_global_norm(1.5), optax.adam(learning_rate)), 64


def alif(learning_rate=0.05):
    """The ALIF network with the batch and schedule of the BRF one, and its own learning rate of 0.05 there.

    BPTT's gradient overflows now and then; such an update is left out. HYPR's never did.
    """
    cell = hj.alif(tau=normal(20.0, 0.5), tau_a=normal(200.0, 5.0), beta=0.174)
    network = training.stack(cell, hj.leaky_integrator(normal(20.0, 0.5)), SIZES, weights=hj.weights.normal_fan_in)

    def optimiser(updates):
        schedule = optax.linear_schedule(learning_rate, 0.0, updates)
        clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        return optax.apply_if_finite(clipped, max_consecutive_errors=1_000_000)

    return network, optimiser, 16


SETUPS = {"brf": brf, "se_adlif": se_adlif, "alif": alif}


def main(arguments=None):
    parser = training.parser(__doc__, epochs=400)
    parser.add_argument("--cell", choices=SETUPS, default="brf", help="neuron model")
    parser.add_argument("--learning-rate", type=float, default=None, help="of Adam; default: the paper's")
    parser.add_argument("--batch-size", type=int, default=None, help="recordings per batch; default: the paper's")
    options = parser.parse_args(arguments)
    train, test = hj.data.ecg_qtdb()
    rate = {"learning_rate": options.learning_rate} if options.learning_rate else {}
    network, optimiser, batch_size = SETUPS[options.cell](**rate)
    batch_size = options.batch_size or batch_size
    return training.run("ecg", options.cell, network, (train, test), optimiser, options, batch_size=batch_size)


if __name__ == "__main__":
    main()
