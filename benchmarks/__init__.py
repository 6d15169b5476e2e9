"""Speed and memory of HYPR beside BPTT and step-by-step e-prop: `python -m benchmarks --help`."""
