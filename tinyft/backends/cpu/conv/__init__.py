"""Convolutions and matrix products: which algorithm takes which layer, and each of them."""
