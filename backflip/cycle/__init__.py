"""The cycle: rounds of sample, rate, fit, optimise, measure, resumable at any moment."""
