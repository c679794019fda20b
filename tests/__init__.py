"""Tests, in rings: unit runs anywhere, guest and crash start guests."""
