"""The benchmarks: what each backend, tier and kernel costs, beside its floor."""
