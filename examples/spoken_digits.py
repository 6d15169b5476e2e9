"""Free Spoken Digits: 0 to 9 by six speakers, as level crossings of a mel filter bank; BPTT and HYPR.

One or two recurrent layers; 2,700 recordings train and 300 test. Needs the data set (see
`hyprjax.data.spoken_digits`) and the extra `examples`. Run it:

    python examples/spoken_digits.py --cell brf --layers 1 --rules bptt hypr --seeds 0 1 2
"""

import optax
import training

import hyprjax as hj
import hyprjax.data

CELLS = {  # neuron model, learning rate
    "brf": (hj.brf(omega=(5.0, 10.0), b_offset=(2.0, 3.0)), 0.05),
    "se_adlif": (hj.se_adlif(q=60.0), 0.01),
    "alif": (hj.alif(tau_a=100.0), 0.01),
}


def main(arguments=None):
    parser = training.parser(__doc__, epochs=40)
    parser.add_argument("--cell", choices=CELLS, default="brf", help="neuron model")
    parser.add_argument("--layers", type=int, default=1, help="recurrent layers")
    parser.add_argument("--neurons", type=int, default=128, help="neurons per layer")
    parser.add_argument("--steps", type=int, default=160, help="steps of 5 ms; longer recordings are cut off")
    parser.add_argument("--learning-rate", type=float, help="of Adam, decayed by a cosine; default by neuron model")
    parser.add_argument("--batch-size", type=int, default=50, help="recordings per update")
    options = parser.parse_args(arguments)
    train, test = hj.data.spoken_digits(steps=options.steps)
    cell, learning_rate = CELLS[options.cell]
    sizes = (train.inputs.shape[-1], *[options.neurons] * options.layers, 10)
    network = training.stack(cell, hj.leaky_integrator(tau=20.0), sizes, dropout=0.1)

    def optimiser(updates):
        schedule = optax.cosine_decay_schedule(options.learning_rate or learning_rate, updates)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    name = f"{options.cell}x{options.layers}"
    return training.run(
        "spoken digits", name, network, (train, test), optimiser, options, batch_size=options.batch_size
    )


if __name__ == "__main__":
    main()
