"""From a model to tokens: packed weights, the plan that runs them, the sampling loop."""
