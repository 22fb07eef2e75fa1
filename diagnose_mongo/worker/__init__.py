"""One process of a fleet: it polls, applies what is meant for it, and reports what came of it."""
