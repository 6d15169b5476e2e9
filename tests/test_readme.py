"""What the README shows is what happens."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import hyprjax as hj

ROOT = Path(__file__).parent.parent


def test_readme_snippets_run():
    jax.config.update("jax_enable_x64", False)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippets
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
    assert jax.tree.structure(namespace["grads"]) == jax.tree.structure(namespace["params"])


def test_the_network_of_the_readme_learns_handwritten_digits():
    jax.config.update("jax_enable_x64", False)
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1], namespace)
    model, params = namespace["model"], namespace["params"]
    cells = {"hidden": namespace["cell"], "readout": namespace["readout"]}
    images, labels = load_digits(return_X_y=True)
    streams = np.repeat(images.reshape(-1, 16, 4).swapaxes(0, 1) / 16, 8, axis=0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(labels))
    test, training = order[:360], order[360:]
    optimiser = optax.adam(optax.cosine_decay_schedule(0.2, 20 * 22))

    def loss(params, xs, labels):
        logits = hj.hypr(model)(params, xs).mean(0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(params, state, xs, labels):
        updates, state = optimiser.update(jax.grad(loss)(params, xs, labels), state)
        return hj.project(cells, optax.apply_updates(params, updates)), state

    state = optimiser.init(params)
    for epoch in range(20):
        for batch in np.random.default_rng(epoch).permutation(training)[: 22 * 64].reshape(22, 64):
            params, state = update(params, state, streams[:, batch], labels[batch])
    right = model(params, streams[:, test]).mean(0).argmax(-1) == labels[test]
    assert right.mean() > 0.9


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_docs_snippets_run(page):
    jax.config.update("jax_enable_x64", False)
    namespace = {}
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(snippet, page.name, "exec"), namespace)


def test_api_reference_has_the_whole_public_surface():
    from hyprjax import data

    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    listed = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    cells = {f"hyprjax.{name}" for name in vars(hj.cells) if name in vars(hj)}  # all on the page of `hyprjax.cells`
    public = {f"hyprjax.{name}" for name in public_names(hj)} | {f"hyprjax.data.{name}" for name in public_names(data)}
    assert sorted(public - cells - listed) == []


def public_names(module):
    return {name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))}


@pytest.mark.filterwarnings("default")  # of matplotlib and scikit-learn
def test_digits_example_runs_two_short_epochs(tmp_path, capsys):
    import digits

    jax.config.update("jax_enable_x64", False)
    figure = tmp_path / "digits.png"
    runs = digits.main(
        ["--epochs", "1", "--hold", "1", "--neurons", "16", "--batch-size", "256", "--figure", str(figure)]
    )
    assert set(runs) == {"hypr", "bptt"}
    assert figure.stat().st_size > 10_000
    assert "test accuracy" in capsys.readouterr().out
    assert runs["hypr"].params["hidden"]["w_rec"].shape == (16, 16)
