"""Calls of Python in a graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_compress.drivers.initialization import is_elastic
from hvd_compress.drivers.tensorflow.turns import TURNS
from hvd_compress.exchange import Array
from hvd_compress.runtime.agreement import marks_of

RECOGNIZED = "HorovodAllreduce"
"""A part of the names of all collectives. ``hvd.elastic.run`` knows by this word in an error's message that a worker
was lost, and takes any other unknown error for the end of the training, without a word; the message has the name of
the operation that failed, and not its kind (Horovod 0.28.1)."""


def comparable(text: str, name: str) -> Any:
    """Return a token for Horovod to reduce, which ``compared`` takes then: it tells whether all ranks have this text.

    It is no constant: TensorFlow would reduce that already when it optimizes the graph, one after the other.
    """
    told = np.array([1, *marks_of(text)], np.float32)
    [token] = python(lambda: told, [], [tf.float32], name)
    token.set_shape(told.shape)
    return token


def compared(token: Any, exchange: Callable[[], Any], complaint: str) -> Any:
    """Return what ``exchange`` does. An error with this ``complaint`` takes its place, on every rank and before
    anything else is sent, if the reduced ``token`` says that the ranks' texts differ."""
    with tf.device("/cpu:0"):
        alike = python(partial(_compare, complaint), [token], [tf.bool])
        with tf.control_dependencies(alike):
            return exchange()


def _compare(complaint: str, token: Array) -> Array:
    """The first element is what becomes of ones, whatever the op and the factors are: where all ranks have the same,
    the others are that, or nothing. A factor that is nothing or infinite leaves nothing to tell, nor to differ."""
    one, marks = token[0], token[1:]
    off = np.minimum(abs(marks), abs(marks - one))
    if np.isfinite(one) and (off > 1e-5 * abs(one)).any():
        raise ValueError(complaint)
    return np.array(True)


def python(
    function: Callable[..., Any], inputs: list[Any], types: list[Any], name: str | None = None, ticket: Any = None
) -> list[Any]:
    """Lay out a call of Python. The graph holds the ``ticket`` until then.

    TensorFlow would run the calls of a function in the order in which they were traced, and a bucket would wait until
    the one before it is done; ``TURNS`` says what waits for what.
    """
    if ticket is not None:
        function, inputs = partial(_without_last, function), [*inputs, ticket]
    if is_elastic():
        function = partial(_unmistakable, function)
    outputs = tf.numpy_function(function, inputs, types, name=name)
    if not tf.executing_eagerly():
        TURNS.add(outputs[0].op)
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def scalar(function: Callable[[], Any], dtype: Any, name: str | None = None) -> Any:
    """Lay out a call of Python that returns a number."""
    [number] = python(function, [], [dtype], name)
    number.set_shape([])
    return number


def _without_last(function: Callable[..., Any], *inputs: Array) -> Any:
    return function(*inputs[:-1])


def _unmistakable(function: Callable[..., Any], *inputs: Array) -> Any:
    """Return what ``function`` does. Its errors are such that ``hvd.elastic.run`` does not take them for the end of
    the training (see ``RECOGNIZED``): TensorFlow has a name of its own for a ValueError, and calls most others
    unknown."""
    try:
        return function(*inputs)
    except tf.errors.OpError:  # of a collective
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
