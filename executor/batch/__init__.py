"""Batch systems: one file for each, text in and text out; what runs their commands; batch jobs."""
