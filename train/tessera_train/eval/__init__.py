"""Measurements of trained models: metrics, reports, ablations."""
