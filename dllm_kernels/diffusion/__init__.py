"""The diffusion process: noise schedules, solvers as coefficient tables, counter-based noise."""
