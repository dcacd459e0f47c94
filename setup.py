"""Compiles the C++ kernels at installation; everything else about the package is in pyproject.toml.

The kernels need no Python and no PyTorch to be compiled (see src/leveret/kernels/native/build.py), so this works in
pip's empty build environment. Without a compiler the installation goes on: PyTorch does the same work more slowly.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.dist import Distribution

NATIVE = Path(__file__).parent / "src/leveret/kernels/native"


def compile_kernels(folder: Path) -> None:
    """Build the libraries into `folder`, by the module that the package itself uses."""
    spec = importlib.util.spec_from_file_location("leveret_native_build", NATIVE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    for problem in build.build_all(folder):
        print(f"leveret: a kernel was not compiled: {problem}", file=sys.stderr)


class BuildWithKernels(build_py):
    """Copies the package and puts the compiled kernels into the copy."""

    def run(self) -> None:
        super().run()
        compile_kernels(Path(self.build_lib) / "leveret/kernels/native")


class EditableWithKernels(editable_wheel):
    """Leaves the compiled kernels beside their sources."""

    def run(self) -> None:
        compile_kernels(NATIVE)
        super().run()


class PlatformDistribution(Distribution):
    """Says that a wheel of this package fits one kind of machine."""

    def has_ext_modules(self) -> bool:
        return NATIVE.is_dir()


setup(cmdclass={"build_py": BuildWithKernels, "editable_wheel": EditableWithKernels}, distclass=PlatformDistribution)
