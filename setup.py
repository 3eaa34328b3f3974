"""The folders that Salt syncs are the packages that pip installs; all else about the project is in pyproject.toml."""

KINDS = ("modules", "states", "beacons", "runners")

# Salt imports this file when a minion's module_dirs names the checkout itself, and setuptools may not be there, or not
# after all that Salt has imported.
if __name__ == "__main__":
    from setuptools import setup

    setup(
        packages=["saltext.kgraft", *(f"saltext.kgraft.{kind}" for kind in KINDS)],
        package_dir={
            "saltext.kgraft": "saltext/kgraft",
            **{f"saltext.kgraft.{kind}": f"_{kind}" for kind in KINDS},
        },
        zip_safe=False,
    )
