"""The program of an elastic job under TensorFlow; see ``tests.ranks.elastic_plan``."""

from __future__ import annotations

import sys
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

from hvd_compress.drivers.tensorflow.parameters import VariableNames
from tests.ranks.elastic_oracle import Oracle
from tests.ranks.elastic_plan import RATE, Plan, batch
from tests.ranks.tensorflow.training import digest, gather, loss_of, network


def main() -> None:
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init()
    plan = Plan.of(sys.argv, hvd, gather)
    compression = plan.compression()
    model = network()
    optimizer = tf.keras.optimizers.SGD(RATE)
    if plan.keras:
        optimizer = hvd_keras.DistributedOptimizer(optimizer, compression=compression)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step_of(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        mine = tf.gradients(loss, model.trainable_variables)
        if plan.keras:
            optimizer.minimize(loss, model.trainable_variables, tape=tape)
            return loss, mine, []
        tape = hvd.DistributedGradientTape(tape, compression=compression)
        means = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(means, model.trainable_variables, strict=True))
        return loss, mine, means

    def average(vector: np.ndarray) -> np.ndarray:
        return hvd.allreduce(tf.constant(vector), name="oracle", op=hvd.Average).numpy()

    oracle, naming = Oracle(plan, compression, average, left_alone=True), VariableNames()
    names = [naming[variable] for variable in model.trainable_variables]

    def by_name(arrays: Any) -> dict[str, np.ndarray]:
        return {name: np.array(array) for name, array in zip(names, arrays, strict=True)}

    def train(state: Any) -> None:
        plan.begin([variable.numpy() for variable in model.trainable_variables])
        while state.step < plan.steps:
            plan.before(state, compression)
            inputs, labels = batch(state.step, hvd.rank())
            oracle.before()
            before = by_name(model.trainable_variables)
            loss, mine, means = step_of(tf.constant(inputs), tf.constant(labels))
            if plan.keras:  # which gives the means to nobody but the optimizer
                after = by_name(model.trainable_variables)
                oracle.rounding = max(np.spacing(np.abs(weights).max()) for weights in before.values()) / RATE
                means = [(before[name].astype(np.float64) - after[name]) / RATE for name in names]
            oracle.check(by_name(mine), by_name(means))
            plan.check(digest(model), compression)
            state.step += 1
            plan.note(state.step, float(loss), compression)
            state.commit()

    state = hvd.elastic.TensorFlowKerasState(model, optimizer, step=0, **plan.kept(compression))
    hvd.elastic.run(train)(state)


if __name__ == "__main__":
    main()
