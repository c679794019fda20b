"""Tests that crash guests."""
