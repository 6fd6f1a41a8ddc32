"""The training loop, the state, the optimiser and the objectives."""
