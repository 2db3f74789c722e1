#!/bin/sh
# What mpirun calls in place of ssh: AGENT HOST COMMAND... Enters the network namespace of that name, under a host name of
# its own (so that MPI sees several nodes), and gives the command to a shell there, as ssh does.
host=$1
shift
# shellcheck disable=SC2016  # for the inner shell
exec ip netns exec "$host" unshare --uts sh -c 'hostname "$0" && exec sh -c "$1"' "$host" "$*"
