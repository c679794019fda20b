"""skblab: two kernels, one message, every copy accounted for."""

__version__ = "0.1.0"
