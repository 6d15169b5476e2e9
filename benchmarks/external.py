"""The same network in other libraries, where they are installed: braintrace's D-RTRL and e-prop, spyx's BPTT."""

from collections.abc import Callable
from importlib.util import find_spec

import jax
import jax.numpy as jnp

import hyprjax as hj
from benchmarks.rules import Case, step_loss


def all_rules(case: Case) -> dict[str, Callable]:
    """Rules `(params, xs) -> (loss, grads)` by label; `params` are the library's own, so the argument is not read."""
    rules = {}
    if find_spec("braintrace") and case.cell in ("lif", "alif"):
        rules["braintrace D-RTRL"] = braintrace_rule(case, "D_RTRL")
        rules["braintrace EProp"] = braintrace_rule(case, "EProp", kappa_filter_decay=0.95)
    if find_spec("spyx") and case.cell == "lif":
        rules["spyx BPTT"] = spyx_rule(case)
    return rules


def braintrace_rule(case: Case, algorithm: str, **options) -> Callable:
    """A recurrent LIF or ALIF layer and a leaky readout, differentiated online, step by step."""
    import brainstate
    import braintrace

    decay, spike = jnp.exp(-1 / 20.0), hj.surrogate.triangular()
    adaptive = case.cell == "alif"

    class Recurrent(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.synapses = braintrace.nn.Linear(case.inputs + case.neurons, case.neurons)

        def init_state(self, batch_size=None, **_):
            self.v = brainstate.HiddenState(jnp.zeros((batch_size, case.neurons)))
            if adaptive:
                self.a = brainstate.HiddenState(jnp.zeros((batch_size, case.neurons)))

        def spikes(self):
            threshold = 0.6 + 0.174 * self.a.value if adaptive else 0.6
            return spike((self.v.value - threshold) / 0.6)

        def update(self, x):
            z = self.spikes()
            current = self.synapses(jnp.concatenate([x, z], -1))
            if adaptive:
                self.a.value = jnp.exp(-1 / 200.0) * self.a.value + z
            self.v.value = decay * self.v.value + current - 0.6 * jax.lax.stop_gradient(z)
            return self.spikes()

    class Network(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = Recurrent()
            self.readout = braintrace.nn.LeakyRateReadout(case.neurons, case.classes, tau=20.0)

        def update(self, x):
            return self.readout(self.hidden(x))

    with brainstate.environ.context(dt=1.0):
        example = jnp.zeros((case.batch, case.inputs))
        network = Network()
        learner = braintrace.compile(network, getattr(braintrace, algorithm), example, batch_size=case.batch, **options)

    def value_and_grad(params, xs):
        del params
        with brainstate.environ.context(dt=1.0):
            brainstate.nn.init_all_states(network, batch_size=case.batch)
            learner.reset_state(batch_size=case.batch)
            grads, losses = learner.etrace_grad(
                xs["inputs"],
                xs["labels"],
                step_fn=lambda x, label: step_loss(learner(x), label),
                return_value=True,
            )
        return losses.mean(), grads

    def pure(params, xs):  # brainstate keeps its states to itself; this makes them arguments that jax.jit can see
        stateful = brainstate.transform.StatefulFunction(value_and_grad).make_jaxpr(params, xs)
        states = [state.value for state in stateful.get_states(params, xs)]
        return stateful.jaxpr_call(states, params, xs)[1]

    return pure


def spyx_rule(case: Case) -> Callable:
    """Spyx's recurrent LIF layer between two linear layers, a leaky readout, and `nnx.value_and_grad`."""
    import spyx
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = spyx.nn.Sequential(
        nnx.Linear(case.inputs, case.neurons, rngs=rngs),
        spyx.nn.RLIF((case.neurons,), rngs=rngs),
        nnx.Linear(case.neurons, case.classes, rngs=rngs),
        spyx.nn.LI((case.classes,), rngs=rngs),
    )
    graph, params = nnx.split(model)

    def loss_fn(params, xs):
        model = nnx.merge(graph, params)
        logits, _ = spyx.nn.run(model, xs["inputs"])
        return step_loss(logits, xs["labels"])

    return lambda _, xs: jax.value_and_grad(loss_fn)(params, xs)
