"""The program of an elastic job under TensorFlow; see ``tests.ranks.elastic_plan``."""

from __future__ import annotations

import sys
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import tensorflow as tf

from tests.ranks.elastic_plan import RATE, Plan, batch
from tests.ranks.tensorflow.elastic_steps import Steps
from tests.ranks.tensorflow.training import gather, loss_of, network


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
    steps = Steps(plan, model, compression)

    @tf.function
    def step_of(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        mine = tf.gradients(loss, model.trainable_variables)
        if plan.keras:
            optimizer.minimize(loss, model.trainable_variables, tape=tape)
            return loss, mine, None
        tape = hvd.DistributedGradientTape(tape, compression=compression)
        means = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(means, model.trainable_variables, strict=True))
        return loss, mine, means

    def train(state: Any) -> None:
        plan.begin([variable.numpy() for variable in model.trainable_variables])
        while state.step < plan.steps:
            steps.before(state)
            inputs, labels = batch(state.step, hvd.rank())
            loss, mine, means = step_of(tf.constant(inputs), tf.constant(labels))
            steps.after(state, float(loss), mine, means)
            state.commit()

    state = hvd.elastic.TensorFlowKerasState(model, optimizer, step=0, **plan.kept(compression))
    hvd.elastic.run(train)(state)


if __name__ == "__main__":
    main()
