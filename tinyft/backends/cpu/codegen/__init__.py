"""How Python writes vector code: registers, generators, compiling and keeping kernels."""
