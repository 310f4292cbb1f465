"""Writes vector code from Python: registers, generators, compiling and keeping kernels."""
