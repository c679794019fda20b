"""Tests of what others look at: pages in a real browser, files in the tools they are for."""
