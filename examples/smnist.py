"""Sequential and permuted MNIST: an image is 784 steps of one pixel; BPTT and HYPR.

Needs the four IDX files (see `hyprjax.data.sequential_mnist`) and the extra `examples`. Run it:

    python examples/smnist.py --permuted --rules bptt hypr --seeds 0
"""

import optax
import training

import hyprjax as hj
import hyprjax.data


def main(arguments=None):
    parser = training.parser(__doc__, epochs=50, seeds=[0])
    parser.add_argument("--permuted", action="store_true", help="the pixels in a random order")
    parser.add_argument("--neurons", type=int, default=256, help="neurons of the recurrent layer")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of Adam, decayed linearly")
    parser.add_argument("--batch-size", type=int, default=256, help="images per update")
    options = parser.parse_args(arguments)
    train, test = hj.data.sequential_mnist(permutation_seed=0 if options.permuted else None)
    cell = hj.brf(omega=(15.0, 50.0), b_offset=(0.1, 1.0))
    sizes = (1, options.neurons, 10)
    network = training.stack(cell, hj.leaky_integrator(tau=20.0), sizes, bias=False)
    optimiser = lambda updates: optax.adam(optax.linear_schedule(options.learning_rate, 0.0, updates))  # noqa: E731
    task = "permuted mnist" if options.permuted else "sequential mnist"
    return training.run(task, "brf", network, (train, test), optimiser, options, batch_size=options.batch_size)


if __name__ == "__main__":
    main()
