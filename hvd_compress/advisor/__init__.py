"""The model behind ``hvd-compress advise``, ``bench`` and ``list``: what compression costs, and whether it pays.

- ``catalogue`` and ``configurations`` know which compressors there are; ``candidates`` makes those that are compared.
- ``model`` describes the network that is trained, and ``torch_model`` reads and times one of PyTorch.
- ``exchange_timing`` runs exchanges in this process: ``cost_benchmark`` measures ``costs`` with it, and ``benchmark``
  times compressors and kernels against a pass of error feedback, on the ``machine`` at hand.
- ``cluster`` says what collectives cost; ``network_benchmark`` measures that between ranks, and
  ``driver_benchmark`` what the PyTorch driver costs beside them.
- ``forecast`` simulates a training step on a ``timeline`` from all of these, and ``advice`` ranks the forecasts.
"""
