# shellcheck shell=bash
# Source this: it makes the checkout's environment, and runs of several ranks in it, work on any one machine.
#     . launch/env.sh && horovodrun -np 2 python train.py
# Settings are defaults: a variable that you have set wins, and so does a flag of mpirun (--mca name value).

# bash and zsh know which file they source; other shells (dash, ash) do not, and have to be in the checkout's folder.
HVD_COMPRESS_ROOT=
if [ -n "${BASH_VERSION:-}" ]; then
    eval 'HVD_COMPRESS_ROOT=${BASH_SOURCE[0]}' # which others cannot even read
elif [ -n "${ZSH_VERSION:-}" ]; then
    HVD_COMPRESS_ROOT=$0
else
    HVD_COMPRESS_ROOT=launch/env.sh
fi
if ! [ -f "$HVD_COMPRESS_ROOT" ]; then
    echo "launch/env.sh: this shell needs to be in the checkout's folder to source it: cd there, then . launch/env.sh" >&2
    return 1
fi
HVD_COMPRESS_ROOT="$(cd "$(dirname "$HVD_COMPRESS_ROOT")/.." && pwd)"
export HVD_COMPRESS_ROOT
export VIRTUAL_ENV="$HVD_COMPRESS_ROOT/.venv"
case $PATH in
    "$VIRTUAL_ENV/bin:"*) ;;
    *) export PATH="$VIRTUAL_ENV/bin:$PATH" ;;
esac
unset PYTHONHOME

# Open MPI comes from a wheel that was built for another prefix. mpirun corrects that for its ranks, but a program
# started without mpirun (one rank, `python train.py`) would look for its helpers in the prefix of the build.
export OPAL_PREFIX="$VIRTUAL_ENV"

# Open MPI refuses to run as root unless told twice; in a container, root is the only user there is.
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# Open MPI does not start even on one machine if it finds neither ssh nor rsh, and many containers have neither.
export OMPI_MCA_plm_rsh_agent="${OMPI_MCA_plm_rsh_agent:-ssh : rsh : false}"
# More ranks than cores is the normal case in a test; otherwise mpirun asks for --oversubscribe.
export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
# By default one or two ranks are each tied to one core, with all the threads of the framework.
export OMPI_MCA_hwloc_base_binding_policy="${OMPI_MCA_hwloc_base_binding_policy:-none}"
# Ranks that wait spin on a core; with more ranks than cores the one that computes needs it.
export OMPI_MCA_mpi_yield_when_idle="${OMPI_MCA_mpi_yield_when_idle:-1}"
# Shared memory copies through ptrace (CMA) are forbidden in most containers and complain once per rank.
export OMPI_MCA_btl_vader_single_copy_mechanism="${OMPI_MCA_btl_vader_single_copy_mechanism:-none}"

# Horovod by default waits for ever for a rank that never comes, and gives up on start-up after 30 seconds, in which a
# busy machine has not imported TensorFlow four times.
export HOROVOD_STALL_CHECK_TIME_SECONDS="${HOROVOD_STALL_CHECK_TIME_SECONDS:-30}"
export HOROVOD_STALL_SHUTDOWN_TIME_SECONDS="${HOROVOD_STALL_SHUTDOWN_TIME_SECONDS:-300}"
export HOROVOD_START_TIMEOUT="${HOROVOD_START_TIMEOUT:-120}"
export HOROVOD_GLOO_TIMEOUT_SECONDS="${HOROVOD_GLOO_TIMEOUT_SECONDS:-120}"

# Horovod's Keras API is that of Keras 2.
export TF_USE_LEGACY_KERAS="${TF_USE_LEGACY_KERAS:-1}"
# One line per rank about the CPU's instruction set hides what matters. Errors and warnings stay.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-1}"
