"""Speed and memory of HYPR beside BPTT and explicit traces step by step: `python -m benchmarks --help`."""
