"""Pictures drawn by code, for the examples: one shape on a noisy background, 20 lines of geometry.

Each picture has a random position, size, turn and two random colours, so that nothing but the
shape tells the classes apart.
"""

import numpy as np

# A shape is a function of the angle: how far its edge is from its centre. x, y -> inside or not.
RECIPES = {
    "circle": lambda r, a: r < 0.8,
    "ring": lambda r, a: (r < 0.9) & (r > 0.55),
    "square": lambda r, a: r * np.cos(a % (np.pi / 2) - np.pi / 4) < 0.65,
    "triangle": lambda r, a: r * np.cos(a % (2 * np.pi / 3) - np.pi / 3) < 0.5,
    "cross": lambda r, a: r * np.minimum(abs(np.sin(a)), abs(np.cos(a))) < 0.22 * (r < 0.95),
    "bar": lambda r, a: (abs(r * np.sin(a)) < 0.25) & (r < 1),
    "star": lambda r, a: r < 0.68 + 0.3 * np.cos(5 * a),
    "moon": lambda r, a: (r < 0.9) & (np.hypot(r * np.cos(a) - 0.5, r * np.sin(a)) > 0.7),
    "half": lambda r, a: (r < 0.9) & (np.sin(a) > 0),
    "flower": lambda r, a: r < 0.68 + 0.3 * np.cos(3 * a),
    "frame": lambda r, a: abs(r * np.cos(a % (np.pi / 2) - np.pi / 4) - 0.55) < 0.15,
    "pair": lambda r, a: np.hypot(r * abs(np.cos(a)) - 0.55, r * np.sin(a)) < 0.38,
}


def draw(names, count, *, size=32, noise=65, seed=0):
    """`count` pictures of each shape: uint8 (len(names) * count, size, size, 3), and int labels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    labels = np.repeat(np.arange(len(names)), count)
    pictures = rng.integers(0, noise, (len(labels), size, size, 3), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        radius, turn = size * rng.uniform(0.25, 0.38), rng.uniform(0, 2 * np.pi)
        cx, cy = rng.uniform(radius, size - radius, 2)
        r = np.hypot(x - cx, y - cy) / radius
        angle = np.arctan2(y - cy, x - cx) + turn
        inside = RECIPES[names[label]](r, angle)
        dark, light = rng.integers(0, 80, 3), rng.integers(90, 190, 3)
        background, colour = (dark, light) if rng.random() < 0.5 else (light, dark)
        picture += np.where(inside[..., None], colour, background).astype(np.uint8)
    return pictures, labels
