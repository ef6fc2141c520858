"""What people read: the differential with its limits, the state of the line, pictures, and figures for Prometheus.

Import from the modules: ``counts`` and ``metrics`` answer in milliseconds, ``figures`` loads matplotlib.
"""
