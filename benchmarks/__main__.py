"""Run every benchmark here: each file that defines ``main()``. It is what ``make bench`` does."""

import importlib
import pkgutil

import benchmarks

for name in sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__"):
    main = getattr(importlib.import_module(f"benchmarks.{name}"), "main", None)
    if main:
        print(f"\n## benchmarks/{name}.py\n", flush=True)
        main()
