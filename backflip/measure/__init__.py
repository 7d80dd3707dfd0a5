"""Measuring: numbers from answers, readings and utilities. No store, no models."""
