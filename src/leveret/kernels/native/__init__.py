"""Kernels in C++, compiled once for each instruction set when the package is installed, and the way to them."""
