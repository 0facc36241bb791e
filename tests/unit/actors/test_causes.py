"""What is said of a worker that is gone; the texts are those of the pinned Ray, filled in."""

from __future__ import annotations

import pytest

from framework.actors.causes import cause, is_collective, port_taken

BY_RAY = """The actor died unexpectedly before finishing this task.
	class_name: LearnerWorker
	actor_id: 5f1a
The actor is dead because its worker process has died. 2 worker(s) were killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.7, ID: 9c2e) was 22.31GB used / 23.54GB limit (0.947749)
OOM kill reason: the node's memory is above the threshold of 0.94
Object store memory usage: [1.20GB / 7.00GB]
Ray killed 2 worker(s) based on the killing policy
To see more information about memory usage on this node, use `ray logs raylet.out -ip 10.0.0.7`
Top 10 memory users: PID	MEM(GB)	COMMAND
4242	6.03	ray::LearnerWorker
Refer to the documentation on how to address the out of memory issue.
"""
BY_RAY_BEFORE = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.7, ID: 9c2e) where the task was running was 6.03GB / 23.54GB (0.256), which exceeds it.
"""
BY_A_SIGNAL = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly.
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BY_RAY, "Ray killed it: 22.31GB of 23.54GB in use"),
        (BY_RAY_BEFORE, "Ray killed it: 6.03GB of 23.54GB in use"),
        (
            "killed due to the node running low on memory.",
            "Ray killed it: killed due to the node running low on memory.",
        ),
        ("Traceback:\n  line 3\nValueError: bad\n\n", "ValueError: bad"),
        ("", "Exception"),
    ],
)
def test_the_line_that_says_why(text: str, said: str) -> None:
    assert cause(Exception(text)) == said


def test_a_worker_that_something_else_ended_was_not_killed_by_ray() -> None:
    assert "Ray killed it" not in cause(Exception(BY_A_SIGNAL))


def test_whose_fault_it_is() -> None:
    assert is_collective("gloo: connection reset by peer")
    assert not is_collective("CUDA out of memory")
    assert port_taken(OSError("[Errno 98] Address already in use"))
    assert not port_taken(OSError("[Errno 2] No such file"))
