"""The folders that Salt syncs are the packages that pip installs; all else about the project is in pyproject.toml."""

from setuptools import setup

KINDS = ("modules", "states", "beacons")

# Salt imports this file when a minion's module_dirs names the checkout itself
if __name__ == "__main__":
    setup(
        packages=["saltext.kgraft", *(f"saltext.kgraft.{kind}" for kind in KINDS)],
        package_dir={
            "saltext.kgraft": "saltext/kgraft",
            **{f"saltext.kgraft.{kind}": f"_{kind}" for kind in KINDS},
        },
        zip_safe=False,
    )
