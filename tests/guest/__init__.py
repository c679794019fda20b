"""Tests that start guests."""
