"""A spiking convolutional network learns MNIST online: an image is shown for 20 steps, with an update every few steps.

Beside HYPR, from the same start and on the same images: BPTT truncated to the same segments, and BPTT with one update
for all 20 steps. Needs the extra `examples` and the four IDX files (see `hyprjax.data.sequential_mnist`). Run it:

    python examples/conv_mnist.py
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import outputs
from tqdm import tqdm

import hyprjax as hj
import hyprjax.data

CELL, READOUT = hj.lif(tau=5.0), hj.leaky_integrator(tau=10.0)
CELLS = {"first": CELL, "second": CELL, "readout": READOUT}


def show(x, steps=20):
    return jnp.broadcast_to(x, (steps, *x.shape))


def init(key, images):
    """Parameters with which both layers fire at 0.1 on these images."""
    k1, k2, k3 = jax.random.split(key, 3)
    x = hj.patches(show(images), 5, stride=2)
    first = hj.calibrate(CELL, hj.init_layer(k1, CELL, 5 * 5 * 1, 8), x, rate=0.1)
    x = hj.patches(hj.unroll(CELL, first, x), 3, stride=2)
    second = hj.calibrate(CELL, hj.init_layer(k2, CELL, 3 * 3 * 8, 16), x, rate=0.1)
    return {"first": first, "second": second, "readout": hj.init_layer(k3, READOUT, 7 * 7 * 16, 10)}


def model(params, images):
    """Logits `[T, B, 10]` and the spikes of the first layer, of images `[T, B, 28, 28, 1]`."""
    first = hj.unroll(CELL, params["first"], hj.patches(images, 5, stride=2))  # [T, B, 14, 14, 8]
    second = hj.unroll(CELL, params["second"], hj.patches(first, 3, stride=2))  # [T, B, 7, 7, 16]
    return hj.unroll(READOUT, params["readout"], second.reshape(*second.shape[:2], -1)), first


def loss_fn(params, xs):
    logits, _ = model(params, xs["images"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, xs["labels"]).mean()


def learner(rule, length, optimiser):
    """`(params, state, xs) -> (params, state, loss)` on a batch of images, with an update every `length` steps."""
    online, plain = hj.hypr_stream(loss_fn), hj.stream(loss_fn)
    backpropagate = jax.value_and_grad(plain.apply, has_aux=True)

    def update(learning, segment):
        params, state, carry = learning
        if rule == "hypr":
            (loss, grads), carry = online.value_and_grad(params, carry, segment)
        else:
            (loss, carry), grads = backpropagate(params, carry, segment)
        changes, state = optimiser.update(grads, state, params)
        return (hj.project(CELLS, optax.apply_updates(params, changes)), state, carry), loss

    @jax.jit
    def learn(params, state, xs):
        segment = jax.tree.map(lambda x: show(x, length), xs)
        carry = (online if rule == "hypr" else plain).init(params, segment)
        segments = jax.tree.map(lambda x: show(x, 20 // length), segment)
        (params, state, _), losses = jax.lax.scan(update, (params, state, carry), segments)
        return params, state, losses.mean()

    return learn


def main(arguments=None):
    parser = outputs.parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="to learn from, of 60,000")
    parser.add_argument("--passes", type=int, default=2, help="over these images")
    parser.add_argument("--segment-length", type=int, default=5, help="steps from update to update, a divisor of 20")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and order of images")
    parser.add_argument("--figure", type=Path, default=outputs.OUT / "conv_mnist.png", help="where to save the picture")
    options = parser.parse_args(arguments)
    (images, labels), (test_images, test_labels) = (
        (part.inputs.T.reshape(-1, 28, 28, 1), part.targets) for part in hj.data.sequential_mnist()
    )
    start, optimiser = init(jax.random.key(options.seed), images[:8]), optax.adam(2e-3)
    answers = jax.jit(lambda params, images: model(params, show(images))[0].mean(0).argmax(-1))
    lengths, accuracy = {"hypr": options.segment_length, "truncated bptt": options.segment_length, "bptt": 20}, {}
    curves = {}
    for rule, length in lengths.items():
        params, state, learn = start, optimiser.init(start), learner(rule, length, optimiser)
        rng, losses, begin = np.random.default_rng(options.seed), [], time.perf_counter()
        order = np.concatenate([rng.permutation(options.images) for _ in range(options.passes)])
        for batch in tqdm(order[: len(order) // 32 * 32].reshape(-1, 32), rule):
            params, state, loss = learn(params, state, {"images": images[batch], "labels": labels[batch]})
            losses.append(float(loss))
        parts = [slice(i, i + 100) for i in range(0, len(test_labels), 100)]
        seconds = time.perf_counter() - begin
        right = np.concatenate([answers(params, test_images[part]) == test_labels[part] for part in parts])
        accuracy[rule] = float(right.mean())
        print(f"{rule:<15} loss {np.mean(losses[-50:]):.3f}, test accuracy {100 * right.mean():.2f} %, {seconds:.0f} s")
        curves[rule] = losses
        if rule == "hypr":
            spikes = np.asarray(model(params, show(test_images[:1]))[1].sum(0)[0])
    outputs.conv_mnist(options.figure, curves, accuracy, options.passes, spikes)
    return accuracy


if __name__ == "__main__":
    main()
