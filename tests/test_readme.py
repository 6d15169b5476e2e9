"""What the README shows is what happens."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent


def test_readme_snippets_run():
    jax.config.update("jax_enable_x64", False)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippets) >= 4
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
    assert namespace["logits"].shape == (1, 16, 6)
    assert jax.tree.structure(namespace["grads"]) == jax.tree.structure(namespace["params"])


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_docs_snippets_run(page):
    jax.config.update("jax_enable_x64", False)
    namespace = {}
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(snippet, page.name, "exec"), namespace)


def test_readme_names_the_whole_public_surface():
    import hyprjax as hj

    readme = (ROOT / "README.md").read_text()
    public = public_names(hj)
    assert public
    assert [name for name in sorted(public) if name not in readme] == []


def test_api_reference_has_the_whole_public_surface():
    import hyprjax as hj
    import hyprjax.data

    listed = set(re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    cells = {f"hyprjax.{name}" for name in vars(hj.cells) if name in vars(hj)}  # all on the page of `hyprjax.cells`
    public = {f"hyprjax.{name}" for name in public_names(hj)} | {
        f"hyprjax.data.{name}" for name in public_names(hj.data)
    }
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
