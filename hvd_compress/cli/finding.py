"""A line of the report of ``hvd-compress doctor``, and what the output of a program that failed says."""

from __future__ import annotations

import re
from dataclasses import dataclass

OK, NOTE, BROKEN = "ok", "note", "broken"
"""It works; it is not there or limited, which may be as it should; it does not work."""

ADVICE = (
    (
        r"run as root",
        "mpirun refuses root: in a container set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
    ),
    (
        r"rsh_agent|neither ssh nor rsh",
        "no ssh here: on a single machine set OMPI_MCA_plm_rsh_agent='ssh : rsh : false'",
    ),
    (r"not enough slots", "give mpirun more slots: --oversubscribe, or slots=N in the hostfile"),
    (r"opal_init|ess_env_module|help-\w+\.txt", "set OPAL_PREFIX to the folder that Open MPI is installed in"),
    (
        r"undefined symbol|GLIBCXX",
        "Horovod was built against other versions of its libraries: build it again, hvd-compress build-horovod",
    ),
    (r"gradients on a GPU need Triton", "pip install --upgrade 'hvd-compress[cuda]'"),
)
"""What to do, by what a failed exchange printed."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``advice`` is what to do, where something can be done."""

    name: str
    status: str
    detail: str
    advice: str = ""


def advice_for(output: str, command: str, otherwise: str = "") -> str:
    """Return what to do about a program that printed ``output`` and failed."""
    for pattern, advice in ADVICE:
        if re.search(pattern, output):
            return advice
    return f"{otherwise}see what it prints: {command}"


def last_words(output: str) -> str:
    """Return the line that is most likely to say why a program failed."""
    lines = [re.sub(r"^\[[\d,]*\]<std\w+>:", "", line).strip() for line in output.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    known = [line for line in lines if any(re.search(pattern, line) for pattern, _ in ADVICE)]
    spoken = [line for line in reversed(lines) if re.search(r"\w", line)]
    return next(iter(errors or known or spoken), "")[:300]
