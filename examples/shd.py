"""Spiking Heidelberg Digits: 20 classes of spoken digits as cochlea spikes; BPTT and HYPR.

Needs `shd_train.h5` and `shd_test.h5` (see `hyprjax.data.heidelberg_digits`) and the extra `examples`. Run it:

    python examples/shd.py --cell se_adlif --rules bptt hypr --seeds 0
"""

import optax
import training

import hyprjax as hj
import hyprjax.data

CELLS = {
    "brf": hj.brf(omega=(5.0, 10.0), b_offset=(2.0, 3.0)),
    "se_adlif": hj.se_adlif(),
}


def main(arguments=None):
    parser = training.parser(__doc__, epochs=20, seeds=[0])
    parser.add_argument("--cell", choices=CELLS, default="brf", help="neuron model")
    parser.add_argument("--layers", type=int, default=1, help="recurrent layers")
    parser.add_argument("--neurons", type=int, default=128, help="neurons per layer")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of Adam, decayed linearly")
    parser.add_argument("--batch-size", type=int, default=32, help="recordings per update")
    options = parser.parse_args(arguments)
    train, test = hj.data.heidelberg_digits()
    sizes = (train.inputs.shape[-1], *[options.neurons] * options.layers, 20)
    network = training.stack(CELLS[options.cell], hj.leaky_integrator(tau=20.0), sizes, dropout=0.15)
    optimiser = lambda updates: optax.adam(optax.linear_schedule(options.learning_rate, 0.0, updates))  # noqa: E731
    name = f"{options.cell}x{options.layers}"
    return training.run("shd", name, network, (train, test), optimiser, options, batch_size=options.batch_size)


if __name__ == "__main__":
    main()
