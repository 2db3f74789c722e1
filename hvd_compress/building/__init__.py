"""Building Horovod. The standard library is all it needs: set-up runs it before anything is installed."""
