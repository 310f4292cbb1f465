"""One page about a run, and what it is made of: charts, mistakes, Grad-CAM, the plan in words."""
