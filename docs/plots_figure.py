"""The picture of docs/ecosystem.md, drawn by the page's own snippets.

python docs/plots_figure.py docs/images/plots.png
"""

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")


def main(path):
    namespace = {}
    page = Path(__file__).with_name("ecosystem.md").read_text()
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(snippet, "ecosystem.md", "exec"), namespace)
    namespace["figure"].savefig(path, dpi=90)


if __name__ == "__main__":
    main(sys.argv[1])
